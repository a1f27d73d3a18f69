"""The hyper-parameters of a training run, and the presets: `digits`, `mnist`, `cifar10`, `celebahq256`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypeVar

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from diffusion.spacing import DEFAULT_SPACING


@dataclass(frozen=True)
class NetworkConfig:
    """The architecture of a `UNet2DModel`, without the sample's shape, which comes from the data.

    Attributes:
        block_out_channels: channels per resolution, from the full one down; each level halves height and width.
        attention_levels: the levels, counted from 0 at full resolution, whose blocks have self-attention.
        layers_per_block: residual blocks per level.
        attention_head_dim: channels per attention head; None for one head.
        norm_num_groups, norm_eps: of every group normalization.
        dropout: in training only.
        downsample_padding, flip_sin_to_cos, freq_shift: as `UNet2DModel` names them; Ho et al. 2020 pad
            asymmetrically (0) and space the frequencies of the time embedding with a shift of 1.
    """

    block_out_channels: tuple[int, ...]
    attention_levels: tuple[int, ...]
    layers_per_block: int = 2
    attention_head_dim: int | None = None
    norm_num_groups: int = 32
    norm_eps: float = 1e-6
    dropout: float = 0.0
    downsample_padding: int = 0
    flip_sin_to_cos: bool = False
    freq_shift: int = 1

    @property
    def downsampling(self) -> int:
        """By how much the lowest level is smaller than the sample: its height and width must be multiples of this."""
        return int(2 ** (len(self.block_out_channels) - 1))


@dataclass(frozen=True)
class TrainingConfig:
    """One training run, but for the data's place: these values and the data determine the weights.

    Attributes:
        network: the architecture.
        steps: updates of the weights.
        batch_size: images per step, over all processes.
        learning_rate: the highest; reached after `warmup_steps` of linear growth.
        learning_rate_decay: name in `train.learner.DECAYS`.
        accumulate: parts that a process cuts its share of a batch into to save memory.
        betas, weight_decay: of AdamW.
        gradient_clip: the largest norm of the gradient.
        ema_decay: the largest decay of the averaged weights.
        flips: random horizontal flips.
        prediction_type: what the network says, one of `diffusion.process.PREDICTION_TYPES`.
        loss: name in `train.objective.LOSSES`.
        min_snr_gamma: γ of the loss `min-snr`.
        num_train_timesteps, beta_schedule, beta_start, beta_end: the noise schedule.
        explicit_betas: β_0 … β_{T−1} of the schedule `explicit`; None for any other.
        zero_terminal_snr: shift and scale the schedule so that its last ᾱ is 0.
        learn_schedule: learn the schedule between the ends of the given one.
        variance_type: `fixed_small`, `fixed_large`, or `learned_range`, where the network says it too.
        clip_sample: bound of |x_start| when sampling; None for none.
        drop_class: of images with classes: the probability that one is shown without, which trains the null class.
        seed: of initialization, data order, timesteps, noise, flips and dropout.
        mixed_precision: `no`, `fp16` or `bf16`.
    """

    network: NetworkConfig
    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    learning_rate_decay: str = "constant"
    accumulate: int = 1
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    ema_decay: float = 0.9999
    flips: bool = False
    prediction_type: str = "epsilon"
    loss: str = "simple"
    min_snr_gamma: float = 5.0
    num_train_timesteps: int = 1000
    beta_schedule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    explicit_betas: tuple[float, ...] | None = None
    zero_terminal_snr: bool = False
    learn_schedule: bool = False
    variance_type: str = "fixed_large"
    clip_sample: float | None = 1.0
    drop_class: float = 0.1
    seed: int = 0
    mixed_precision: str = "no"

    def schedule(self) -> NoiseSchedule:
        """The noise schedule, before anything of it is learned.

        Raises:
            InputError: βs that form no schedule, or that are not T; or nothing to learn in it.
        """
        if self.explicit_betas is None:
            made = NoiseSchedule.make(self.beta_schedule, self.num_train_timesteps, self.beta_start, self.beta_end)
        else:
            made = NoiseSchedule.from_json(
                {"kind": "explicit", "num_train_timesteps": self.num_train_timesteps, "betas": self.explicit_betas}
            )
        made = made.with_zero_terminal_snr() if self.zero_terminal_snr else made
        if self.learn_schedule and made.alpha_bar[-1] == 0.0:
            raise InputError(
                "--learn-schedule keeps the ends of the given schedule, and this one ends at a signal-to-noise ratio "
                "of zero, which no learned one reaches; leave out --zero-terminal-snr, or --learn-schedule"
            )
        if self.learn_schedule and made.num_train_timesteps < 3:
            raise InputError(
                f"--learn-schedule keeps both ends of the schedule, and T is {made.num_train_timesteps}; "
                "give --num-train-timesteps 3 or more, or leave out --learn-schedule"
            )
        return made

    def process(self, sample: SampleShape) -> Process:
        """The process that a network trained so, on data of this shape, belongs to; its schedule as given.

        Raises:
            InputError: as `schedule`, or a prediction that is undefined where ᾱ is 0.
        """
        return Process(
            sample=sample,
            schedule=self.schedule(),
            prediction_type=self.prediction_type,
            variance_type=self.variance_type,
            clip_sample=self.clip_sample,
            timestep_spacing=DEFAULT_SPACING,  # explicit, because the default of diffusers differs
        )


@dataclass(frozen=True)
class LoggingConfig:
    """How often things happen beside the updates; none of it changes the weights.

    Attributes:
        log_every, evaluate_every: steps between lines of the metrics, and between held-out losses.
        save_seconds: between saves of the state that `--resume` goes on from.
        num_workers: threads that prepare batches ahead.
    """

    log_every: int = 100
    evaluate_every: int = 5000
    save_seconds: float = 600.0
    num_workers: int = 4


@dataclass(frozen=True)
class Preset:
    """A ready training run: its configuration, its data, and settings that do not change the weights.

    Attributes:
        config: the hyper-parameters.
        data: what `--data` is when it is not given; None where it must be.
        held_out_split: the split of `data` that is held out; None to hold out some training images.
        logging_config: how often to log, evaluate and save.
        num_samples: images in samples.png.
    """

    config: TrainingConfig
    data: str | None
    held_out_split: str | None = None
    logging_config: LoggingConfig = LoggingConfig()
    num_samples: int = 64


DIGITS = Preset(
    config=TrainingConfig(
        network=NetworkConfig(
            block_out_channels=(32, 64),
            attention_levels=(1,),
            layers_per_block=1,
            attention_head_dim=32,
            norm_num_groups=8,
        ),
        steps=1500,
        batch_size=64,
        learning_rate=4e-3,
        warmup_steps=100,
        learning_rate_decay="cosine",
        betas=(0.9, 0.99),
        ema_decay=0.995,
    ),
    data="digits",
    logging_config=LoggingConfig(log_every=20, evaluate_every=200, save_seconds=20.0, num_workers=0),
    num_samples=100,
)

MNIST = Preset(
    config=TrainingConfig(
        network=NetworkConfig(
            block_out_channels=(16, 32, 48),  # the full resolution costs most: two cores sample what is narrow there
            attention_levels=(2,),
            layers_per_block=1,
            attention_head_dim=24,
            norm_num_groups=8,
        ),
        steps=3000,
        batch_size=64,
        learning_rate=2e-3,
        warmup_steps=200,
        learning_rate_decay="cosine",
        betas=(0.9, 0.99),
        ema_decay=0.999,
    ),
    data="mnist",
    logging_config=LoggingConfig(log_every=50, evaluate_every=500, save_seconds=60.0, num_workers=0),
    num_samples=100,
)

# Ho et al. 2020, appendix B, and the configuration of google/ddpm-cifar10-32.
CIFAR10 = Preset(
    config=TrainingConfig(
        network=NetworkConfig(block_out_channels=(128, 256, 256, 256), attention_levels=(1,), dropout=0.1),
        steps=800_000,
        batch_size=128,
        learning_rate=2e-4,
        warmup_steps=5000,
        flips=True,
    ),
    data="cifar10",
    held_out_split="test",
)

# Ho et al. 2020, appendix B, and the configuration of google/ddpm-celebahq-256.
CELEBAHQ256 = Preset(
    config=TrainingConfig(
        network=NetworkConfig(block_out_channels=(128, 128, 256, 256, 512, 512), attention_levels=(4,)),
        steps=500_000,
        batch_size=64,
        learning_rate=2e-5,
        warmup_steps=5000,
        flips=True,
        variance_type="fixed_small",
    ),
    data=None,
    logging_config=LoggingConfig(num_workers=8),
    num_samples=16,
)

PRESETS = {"digits": DIGITS, "mnist": MNIST, "cifar10": CIFAR10, "celebahq256": CELEBAHQ256}


_Config = TypeVar("_Config", TrainingConfig, LoggingConfig)


def replace_given(config: _Config, **given: object) -> _Config:
    """`config` with those of the given values that are not None in place of its own."""
    return dataclasses.replace(config, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
