"""The encoder that a run started from, which stands beside the run in every evaluation."""

from __future__ import annotations

from bolus.embedding.opening import Judged
from bolus.encoders.backbone import Encoder
from bolus.encoders.building import build_encoder
from bolus.encoders.modalities import ModalityEncoders, build_encoders
from bolus.errors import EncoderError
from bolus.evaluation.statistics.results import START
from bolus.recipe import EncoderSpec, Recipe


def open_start(judged: Judged) -> tuple[Encoder | ModalityEncoders | None, str]:
    """The pretrained encoder that a run's training began with, without its neck and context blocks.

    Args:
        judged: an encoder, as it was opened.

    Returns:
        The encoder, in evaluation mode, and nothing; or None, and why it is not there where that is worth a note. A run
        that started from random weights has no start but its random-init twin.
    """
    if judged.run is None:
        return None, ""
    try:
        return build_start(judged.run.recipe, judged.encoder), ""
    except EncoderError as error:
        return None, f"{START}: the encoder that the run started from cannot be opened, and is left out ({error})"


def build_start(recipe: Recipe, encoder: Encoder | ModalityEncoders) -> Encoder | ModalityEncoders | None:
    """The pretrained weights that a recipe starts from, alone, in evaluation mode on the CPU; None for random weights.

    Args:
        recipe: of the run.
        encoder: of the run, which says whether modalities have encoders of their own.

    Raises:
        EncoderError: the weights cannot be opened.
    """
    names = encoder.names if isinstance(encoder, ModalityEncoders) else [None]
    specs = {name: _plain(recipe.encoder if name is None else recipe.encoder_of(name)) for name in names}
    if not all(spec.pretrained for spec in specs.values()):
        return None
    if None in specs:
        return build_encoder(specs[None], seed=0).eval()
    return build_encoders({str(name): spec for name, spec in specs.items()}, seed=0).eval()


def _plain(spec: EncoderSpec) -> EncoderSpec:
    """The spec as the weights were found: what was put around them starts fresh."""
    return spec.model_copy(update={"neck": None, "context": False, "unfrozen": None})
