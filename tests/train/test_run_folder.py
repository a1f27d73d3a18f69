from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.errors import InputError
from train.run_folder import RunFolder, first_difference

RECORD: dict[str, Any] = {"steps": 10, "learning_rate_decay": "constant", "network": {"channels": (8, 16)}, "seed": 0}


def make_folder(tmp_path: Path, **changes: Any) -> RunFolder:
    return RunFolder(tmp_path / "run", {**RECORD, **changes})


def save(folder: RunFolder, step: int) -> None:
    folder.begin(folder.inspect(resume=False, overwrite=True))
    folder.save({"step": step})


def finish(folder: RunFolder) -> None:
    save(folder, folder.record["steps"])
    (folder.path / "train.json").write_text(json.dumps({"format": 1, "config": folder.record}))
    folder.mark_published()


def test_a_damaged_line_of_the_metrics_is_dropped(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    save(folder, 4)
    folder.log({"step": 1})
    kept = folder.running_metrics.read_bytes()
    folder.running_metrics.write_bytes(kept + b'{"step": \xff2}\n')
    folder.begin(folder.inspect(resume=True, overwrite=False))
    assert folder.running_metrics.read_bytes() == kept


@pytest.mark.parametrize("resume", [False, True])
def test_a_new_or_empty_folder(tmp_path: Path, resume: bool) -> None:
    folder = make_folder(tmp_path)
    assert folder.inspect(resume, overwrite=False).state is None
    folder.path.mkdir()
    (folder.path / ".DS_Store").touch()
    assert not folder.inspect(resume, overwrite=False).complete


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(InputError, match="run: is a file, expected a folder"):
        make_folder(tmp_path).inspect(resume=False, overwrite=True)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["thesis.tex", "train.json", "model_index.json"])
def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path, resume: bool, name: str) -> None:
    folder = make_folder(tmp_path)
    folder.path.mkdir()
    (folder.path / name).write_text("mine")
    with pytest.raises(InputError, match=f"holds '{name}' and no train.json of ours.*--overwrite"):
        folder.inspect(resume, overwrite=False)
    folder.begin(folder.inspect(resume=False, overwrite=True))
    assert (folder.path / name).read_text() == "mine"


def test_a_finished_run_of_the_same_configuration_is_replaced_or_complete(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    finish(folder)
    assert folder.inspect(resume=False, overwrite=False).state is None
    assert folder.inspect(resume=True, overwrite=False).complete
    (folder.path / "state" / "state.pt").unlink()
    assert folder.inspect(resume=True, overwrite=False).complete


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_of_another_configuration_names_the_difference(tmp_path: Path, resume: bool) -> None:
    finish(make_folder(tmp_path))
    other = make_folder(tmp_path, network={"channels": (8, 32)})
    with pytest.raises(
        InputError, match=r"holds a run with network.channels \[8, 16\], asked for is \[8, 32\].*--overwrite"
    ):
        other.inspect(resume, overwrite=False)


def test_an_unfinished_run_is_not_lost_by_accident(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    save(folder, 4)
    with pytest.raises(InputError, match="holds a run that stopped at step 4; go on with --resume, or start over"):
        folder.inspect(resume=False, overwrite=False)
    status = folder.inspect(resume=True, overwrite=False)
    assert status.state is not None
    assert status.state["step"] == 4
    assert not status.complete


def test_a_run_that_is_trained_but_not_published_is_not_complete(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    finish(folder)
    save(folder, 10)  # trained again; stopped before publishing
    assert not folder.inspect(resume=True, overwrite=False).complete


def test_more_steps_continue_a_run_with_a_constant_learning_rate_only(tmp_path: Path) -> None:
    finish(make_folder(tmp_path))
    status = make_folder(tmp_path, steps=20).inspect(resume=True, overwrite=False)
    assert status.state is not None
    assert not status.complete
    with pytest.raises(InputError, match="holds a run with steps 10, asked for is 5"):
        make_folder(tmp_path, steps=5).inspect(resume=True, overwrite=False)
    finish(make_folder(tmp_path, learning_rate_decay="cosine"))
    with pytest.raises(InputError, match="holds a run with steps 10, asked for is 20"):
        make_folder(tmp_path, learning_rate_decay="cosine", steps=20).inspect(resume=True, overwrite=False)


def test_more_steps_are_another_run_where_the_schedule_is_learned_in_a_part_of_them(tmp_path: Path) -> None:
    finish(make_folder(tmp_path, learn_schedule=True))
    with pytest.raises(InputError, match="holds a run with steps 10, asked for is 20"):
        make_folder(tmp_path, learn_schedule=True, steps=20).inspect(resume=True, overwrite=False)


def test_a_record_of_before_there_was_a_choice_stands_for_its_default(tmp_path: Path) -> None:
    finish(make_folder(tmp_path))
    defaults = {"zero_terminal_snr": False, "seed": 5}
    same = RunFolder(tmp_path / "run", {**RECORD, "zero_terminal_snr": False}, defaults)
    assert same.inspect(resume=True, overwrite=False).complete
    other = RunFolder(tmp_path / "run", {**RECORD, "zero_terminal_snr": True}, defaults)
    with pytest.raises(InputError, match="holds a run with zero_terminal_snr False, asked for is True"):
        other.inspect(resume=True, overwrite=False)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"junk"])
def test_a_damaged_state(tmp_path: Path, content: bytes) -> None:
    folder = make_folder(tmp_path)
    save(folder, 4)
    (folder.path / "state" / "state.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"state\.pt: .*; start over with --overwrite"):
        folder.inspect(resume=True, overwrite=False)


def test_a_truncated_state(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    save(folder, 4)
    path = folder.path / "state" / "state.pt"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"state\.pt: cannot be read"):
        folder.inspect(resume=True, overwrite=False)


def test_a_weight_that_was_changed_in_the_state(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    folder.begin(folder.inspect(resume=False, overwrite=True))
    weights = torch.arange(1000.0)
    folder.save({"step": 4, "weights": weights})
    path = folder.path / "state" / "state.pt"
    content = bytearray(path.read_bytes())
    content[content.find(weights[500:501].numpy().tobytes())] ^= 4
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["weights"][500] != 500  # PyTorch reads another number without a word
    with pytest.raises(InputError, match=r"state\.pt: was changed after it was written .*start over with --overwrite"):
        folder.inspect(resume=True, overwrite=False)


def test_a_state_that_is_a_pickle_of_code_is_not_run(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    folder = make_folder(tmp_path)
    save(folder, 4)
    (folder.path / "state" / "state.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="cannot be read"):
        folder.inspect(resume=True, overwrite=False)
    assert not (tmp_path / "ran").exists()


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    import torch

    folder = make_folder(tmp_path)
    save(folder, 4)
    torch.save({"format": 2, "step": 4}, folder.path / "state" / "state.pt")
    with pytest.raises(InputError, match="state format is 2, this version reads 1"):
        folder.inspect(resume=True, overwrite=False)


def test_first_difference() -> None:
    assert first_difference(RECORD, RECORD) is None
    assert first_difference(RECORD, {**RECORD, "steps": 11, "seed": 1}) == ("seed", 0, 1)
    assert first_difference({**RECORD, "new": 3}, RECORD) == ("new", 3, None)


def test_the_last_two_states_are_kept_and_the_older_one_takes_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path)
    for step in (2, 4, 6):
        folder.begin(folder.inspect(resume=True, overwrite=False))
        folder.save({"step": step})
    states = folder.path / "state"
    assert sorted(path.name for path in states.glob("*.pt")) == ["state.previous.pt", "state.pt"]
    for damage, says in ((lambda path: path.write_bytes(b"junk"), True), (lambda path: path.unlink(), False)):
        damage(states / "state.pt")
        status = folder.inspect(resume=True, overwrite=False)
        assert status.state is not None
        assert status.state["step"] == 4
        said = capsys.readouterr().err
        assert ("state.pt: found 4 bytes that begin with" in said) == says
        assert ("going on from the state before, of step 4" in said) == says
    (states / "state.previous.pt").write_bytes(b"junk")
    with pytest.raises(InputError, match=r"state\.previous\.pt: found 4 bytes .*; start over with --overwrite"):
        folder.inspect(resume=True, overwrite=False)


def test_a_second_program_is_kept_out(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    with (
        folder.claimed(),
        pytest.raises(InputError, match="another program is writing it"),
        make_folder(tmp_path).claimed(),
    ):
        pass
