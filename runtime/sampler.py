"""The sampler: an engine, a table and seeds in, images out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from diffusion.conditioning import check_conditioning
from diffusion.errors import InputError
from diffusion.number_checks import shown, whole_number, yes_or_no
from diffusion.philox import MAX_SEED
from diffusion.process import Process
from diffusion.samplers import make_table
from diffusion.samplers.user_table import check_fitted_to
from diffusion.step_table import StepTable, start_note
from runtime.arrays import check_states, room_for
from runtime.chain.device_pool import DevicePool
from runtime.chain.host_pool import HostPool
from runtime.chain.interface import check_seed_range
from runtime.chain.plan import ChainPlan
from runtime.chain.pool import Batch, ChainPool, NewBatch
from runtime.conditions import Classes, GivenConditions, given_conditions
from runtime.device.interface import DeviceEngine
from runtime.engines.interface import Engine
from runtime.engines.opening import EngineOptions, open_engine
from runtime.formats.run_manifest import NonFiniteSample
from runtime.formats.table_file import is_table_file, read_table
from runtime.images import quantize
from runtime.process_flags import ProcessFlags
from runtime.trajectory import Trajectory

# More than most machines have; a hundred thousand would be made, and the machine would stand still.
MAX_THREADS = 1024


class NonFiniteError(ArithmeticError):
    """Samples came out NaN or infinite; `samples` says which, and where each one broke."""

    def __init__(self, samples: Sequence[NonFiniteSample]) -> None:
        super().__init__("; ".join(str(sample) for sample in samples))
        self.samples = list(samples)


class Sampler:
    """Samples from a trained DDPM: `Sampler("unet.onnx").sample(64, seed=0)`.

    Sample k depends on the seed, on its index start + k and on the table, not on how many are drawn
    together: the noise is the same bits for every batch size, worker and restart. (The network's library may round a
    prediction otherwise in a batch of another size.)

    A sampler may be shared by threads, and so may an engine by samplers. A chain serves one caller at a time, for a
    batch: at most two are at work in one sampler on the CPU, and further callers wait; on a GPU callers take turns.
    Nothing is held while `batches` waits for its caller, so a generator may be left in the middle, or iterated while
    the same thread samples anew. What was opened before a fork is refused in the child.

    Args:
        engine: a path (`unet.onnx`, `unet.plan`, a checkpoint folder), or an engine that is already open.
        device: "cpu" or "cuda", for a path; None for "cuda" with a plan and "cpu" with the rest.
        sampler: the method, see `diffusion.samplers.SAMPLERS`; or a table of one's own, or its file `….json`; None for
            `ddpm`, or for `ddim` where `invert` is given.
        num_steps: network calls; None for every timestep of training.
        spacing: how the timesteps are chosen where there are fewer; None for what the checkpoint says, or `trailing`
            where it says nothing.
        timesteps: an explicit, strictly descending choice instead.
        from_timestep: where the chain begins, T−1 unless said.
        lambda_min: leaves out the timesteps with less half-log-SNR than this, the noisiest.
        eta: how much noise `ddim` adds, 0 to 1.
        use_clipped_model_output: whether `ddim` takes eps from the clipped x_start (None, True) or, as diffusers does
            unless told otherwise, from the network (False).
        invert: run the sampler upwards, from images to the noise it would make them from; `x_init` is the images.
        batch_size: samples per network call; None to choose by size.
        threads: of the CPU; 0 for as many as this process may use.
        flags: what the engine's file does not say of its process, and preferences for variance and clip.
        allow_pickle: whether a checkpoint's weights may be a pickle.
        backend: which library runs an ONNX file, see `runtime.engines.onnx_opening.ONNX_BACKENDS`.
        precision, compiled: of a checkpoint folder on a GPU, see `runtime.engines.opening.open_engine`.
        force: run a table although it turns the rounding of a low-precision engine into visible error, or was fitted to
            another checkpoint.

    Raises:
        InputError: an engine, a name or a number that cannot be used.
        DeviceUnavailableError: the device, or the backend's library, is not on this machine.
    """

    def __init__(
        self,
        engine: Engine | Path | str,
        *,
        device: str | None = None,
        sampler: str | Path | StepTable | None = None,
        num_steps: int | None = None,
        spacing: str | None = None,
        timesteps: Sequence[int] | None = None,
        from_timestep: int | None = None,
        lambda_min: float | None = None,
        eta: float | None = None,
        use_clipped_model_output: bool | None = None,
        invert: bool = False,
        batch_size: int | None = None,
        threads: int = 0,
        flags: ProcessFlags | None = None,
        allow_pickle: bool = False,
        backend: str = "auto",
        precision: str | None = None,
        compiled: bool = False,
        force: bool = False,
    ) -> None:
        for name, choice in (
            ("invert", invert),
            ("allow_pickle", allow_pickle),
            ("compiled", compiled),
            ("force", force),
        ):
            yes_or_no(choice, name)
        threads = whole_number(threads, "threads", 0, MAX_THREADS)
        if batch_size is not None:
            batch_size = whole_number(batch_size, "batch size", 1, MAX_SEED)
        if flags is not None and not isinstance(flags, ProcessFlags):
            raise InputError(f"flags are {shown(flags)}, expected runtime.process_flags.ProcessFlags")
        if isinstance(engine, Path | str):
            engine = open_engine(
                engine, EngineOptions(device, threads, flags, allow_pickle, backend, precision, compiled)
            )
        elif not isinstance(engine, Engine):
            raise InputError(f"engine is {shown(engine)}, expected a path, or an engine that is open")
        self.engine = engine
        if isinstance(sampler, str | Path) and is_table_file(sampler):
            sampler = read_table(sampler)
        self.table: StepTable = make_table(
            engine.process,
            str(sampler) if isinstance(sampler, Path) else sampler,
            num_steps,
            spacing,
            timesteps,
            from_timestep,
            lambda_min,
            invert,
            force=True,  # the check follows
            eta=eta,
            use_clipped_model_output=use_clipped_model_output,
        )
        self.begins_with_data = invert or self.table.ascending
        if not force:
            try:
                check_fitted_to(self.table, engine.process)
                if engine.precision != "fp32":
                    check_conditioning(self.table, engine.precision)
            except InputError as error:
                raise InputError(f"{error}; --force (force=True) samples all the same") from None
        self._chains: ChainPool
        if isinstance(engine, DeviceEngine):  # the chain stays where the network is
            self._chains = DevicePool(engine, self.table, batch_size)
        else:
            self._chains = HostPool(engine, self.table, batch_size, threads)

    @property
    def process(self) -> Process:
        """What the network was trained to do."""
        return self.engine.process

    def notes(self, with_x_init: bool = False) -> list[str]:
        """What a user should know of this chain, one line each.

        Args:
            with_x_init: whether states are given to begin with; pure noise in their place may deserve a remark.
        """
        begin = start_note(self.process.schedule.alpha_bar, int(self.table.timesteps[0]))
        of_engine = self.engine.digest_note()
        of_table = [note for note in self.table.notes if not (with_x_init and note == begin)]
        return of_table if of_engine is None else [of_engine, *of_table]

    def sample(
        self,
        num: int,
        seed: int = 0,
        start: int = 0,
        x_init: np.ndarray | None = None,
        *,
        classes: Classes | None = None,
        guidance: float | Sequence[float] | None = None,
        conditions: Mapping[str, object] | None = None,
    ) -> np.ndarray:
        """Draw samples as images.

        The sample with index i takes entry i mod n of a list of n classes, scales or other conditions.

        Args:
            num: how many.
            seed: 0..2⁶⁴−1.
            start: the first sample index.
            x_init: float32 [num, C, H, W], states to begin from instead of noise; float16 and float64 are rounded.
            classes: of a class-conditional network: labels, None for no class; or `all`.
            guidance: how far to go from no class (0) to the class (1) and beyond; 1 unless it is said.
            conditions: what else the network takes, by name: float32 [n, …].

        Returns:
            uint8 [num, H, W, C].

        Raises:
            InputError: a number out of its range.
            NonFiniteError: a sample came out NaN or infinite; nothing is returned.
        """
        return quantize(
            self.sample_float32(num, seed, start, x_init, classes=classes, guidance=guidance, conditions=conditions)
        )

    def sample_float32(
        self,
        num: int,
        seed: int = 0,
        start: int = 0,
        x_init: np.ndarray | None = None,
        *,
        classes: Classes | None = None,
        guidance: float | Sequence[float] | None = None,
        conditions: Mapping[str, object] | None = None,
    ) -> np.ndarray:
        """As `sample`, before quantization: float32 [num, C, H, W]."""
        given = self.conditioned_on(classes, guidance, conditions)
        batches = self.batches(num, seed, start, x_init, given=given)
        x = room_for(int(num), self.process.sample.chw)
        first = 0
        for batch in batches:
            if batch.non_finite:
                raise NonFiniteError(batch.non_finite)
            x[first : first + len(batch.x)] = batch.x
            first += len(batch.x)
        return x

    def conditioned_on(
        self,
        classes: Classes | None = None,
        guidance: float | Sequence[float] | None = None,
        conditions: Mapping[str, object] | None = None,
    ) -> GivenConditions:
        """What `batches` takes of these, which are as in `sample`. Raises InputError as `given_conditions`."""
        return given_conditions(self.process, classes, guidance, conditions)

    def plan(self, num: int, with_trajectory: bool = False) -> ChainPlan:
        """Into which batches `num` samples are divided, and what that takes of a GPU, before it is taken.

        Args:
            num: samples.
            with_trajectory: whether a trajectory is kept.

        Raises:
            InputError: no number of samples, a batch that the engine does not take, or one that does not fit into the
                GPU's memory.
        """
        return self._chains.plan(whole_number(num, "num", 1), with_trajectory)

    def batches(
        self,
        num: int,
        seed: int = 0,
        start: int = 0,
        x_init: np.ndarray | None = None,
        after_step: Callable[[int], None] | None = None,
        trajectory: Trajectory | None = None,
        given: GivenConditions | None = None,
    ) -> Iterator[Batch]:
        """Draw samples batch by batch, in the order of their indices.

        Args:
            num, seed, start, x_init: as in `sample`.
            after_step: called after each step with the number of samples it moved.
            trajectory: filled with the states of the first samples.
            given: of `conditioned_on`; may be left out where the network needs nothing.

        Raises:
            InputError: a number out of its range, states of another shape, or none for a chain that begins with data.
        """
        seed, start, num = check_seed_range(seed, start, num)
        if x_init is None and self.begins_with_data:
            raise InputError(
                f"the chain of {self.table.sampler} runs from data to noise and was given nothing to begin with; "
                "expected x_init, images"
            )
        states = None if x_init is None else check_states(x_init, (num, *self.process.sample.chw))
        if given is None:
            given = self.conditioned_on()
        plan = self._chains.plan(num, trajectory is not None)

        def new_batches() -> Iterator[NewBatch]:
            for first in range(0, num, plan.batch_size):
                last = min(first + plan.batch_size, num)
                indices = list(range(start + first, start + last))
                yield NewBatch(
                    first,
                    [seed] * (last - first),
                    indices,
                    None if states is None else states[first:last],
                    trajectory if trajectory is not None and first < trajectory.num_samples else None,
                    given.of(indices),
                )

        return self._chains.run(plan, new_batches(), after_step)
