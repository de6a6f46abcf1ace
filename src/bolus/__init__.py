"""bolus: pretrain medical-image encoders from the supervision a hospital's tables already hold.

Names are loaded when they are first used, so that `import bolus` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bolus.ablation.running import ablate as ablate
    from bolus.data.batches.relation import Relation as Relation
    from bolus.data.checks.checking import check as check
    from bolus.data.cohort.cohort import Cohort as Cohort
    from bolus.data.pixels.image import Image as Image
    from bolus.data.readers.readers import read_image as read_image
    from bolus.data.volumes.reading import read_volume as read_volume
    from bolus.data.volumes.volume import Volume as Volume
    from bolus.embedding.fresh import preprocess as preprocess
    from bolus.embedding.opening import open_encoder as open_encoder
    from bolus.embedding.table import embed as embed
    from bolus.embedding.table import write_embeddings as write_embeddings
    from bolus.encoders.folders.folder import load_encoder as load_encoder
    from bolus.encoders.folders.stripping import strip as strip
    from bolus.errors import BolusError as BolusError
    from bolus.evaluation.audit.audit import evaluate_audit as evaluate_audit
    from bolus.evaluation.change.change import evaluate_change as evaluate_change
    from bolus.evaluation.elsewhere.elsewhere import evaluate_elsewhere as evaluate_elsewhere
    from bolus.evaluation.probing.options import FinetuneSpec as FinetuneSpec
    from bolus.evaluation.probing.reading import evaluate as evaluate
    from bolus.evaluation.retrieval.retrieve import evaluate_retrieve as evaluate_retrieve
    from bolus.evaluation.retrieval.retrieve import top_k as top_k
    from bolus.evaluation.segmentation.options import SegmentSpec as SegmentSpec
    from bolus.evaluation.segmentation.segment import evaluate_segment as evaluate_segment
    from bolus.exporting.deploying import export as export
    from bolus.measuring.bench import bench as bench
    from bolus.objectives.contrasts.varcov import varcov_loss as varcov_loss
    from bolus.objectives.dense.filtering import grad_filter as grad_filter
    from bolus.objectives.infonce import infonce as infonce
    from bolus.objectives.scores.chronocon import chronocon_loss as chronocon_loss
    from bolus.objectives.scores.rank_n_contrast import rank_n_contrast_loss as rank_n_contrast_loss
    from bolus.objectives.scores.score import score_contrast_loss as score_contrast_loss
    from bolus.objectives.scores.supremix import supremix_loss as supremix_loss
    from bolus.phantom.images import make_phantom as make_phantom
    from bolus.phantom.volumes import make_volume_phantom as make_volume_phantom
    from bolus.planning.planner import plan as plan
    from bolus.prediction.prediction import predict as predict
    from bolus.recipe import Recipe as Recipe
    from bolus.reporting.writing import report as report
    from bolus.run import Run as Run
    from bolus.scanning.scanning import scan as scan
    from bolus.training.gradients.mitigator import grad_mitigator as grad_mitigator
    from bolus.training.loop import pretrain as pretrain
    from bolus.training.rehearsal import dry_run as dry_run

__version__ = "0.1.0"

_HOMES = {
    "BolusError": "bolus.errors",
    "Cohort": "bolus.data.cohort.cohort",
    "FinetuneSpec": "bolus.evaluation.probing.options",
    "Image": "bolus.data.pixels.image",
    "Recipe": "bolus.recipe",
    "Relation": "bolus.data.batches.relation",
    "Run": "bolus.run",
    "SegmentSpec": "bolus.evaluation.segmentation.options",
    "Volume": "bolus.data.volumes.volume",
    "ablate": "bolus.ablation.running",
    "bench": "bolus.measuring.bench",
    "check": "bolus.data.checks.checking",
    "chronocon_loss": "bolus.objectives.scores.chronocon",
    "dry_run": "bolus.training.rehearsal",
    "embed": "bolus.embedding.table",
    "evaluate": "bolus.evaluation.probing.reading",
    "evaluate_audit": "bolus.evaluation.audit.audit",
    "evaluate_change": "bolus.evaluation.change.change",
    "evaluate_elsewhere": "bolus.evaluation.elsewhere.elsewhere",
    "evaluate_retrieve": "bolus.evaluation.retrieval.retrieve",
    "evaluate_segment": "bolus.evaluation.segmentation.segment",
    "export": "bolus.exporting.deploying",
    "grad_filter": "bolus.objectives.dense.filtering",
    "grad_mitigator": "bolus.training.gradients.mitigator",
    "infonce": "bolus.objectives.infonce",
    "load_encoder": "bolus.encoders.folders.folder",
    "make_phantom": "bolus.phantom.images",
    "make_volume_phantom": "bolus.phantom.volumes",
    "open_encoder": "bolus.embedding.opening",
    "plan": "bolus.planning.planner",
    "predict": "bolus.prediction.prediction",
    "preprocess": "bolus.embedding.fresh",
    "pretrain": "bolus.training.loop",
    "rank_n_contrast_loss": "bolus.objectives.scores.rank_n_contrast",
    "read_image": "bolus.data.readers.readers",
    "read_volume": "bolus.data.volumes.reading",
    "report": "bolus.reporting.writing",
    "scan": "bolus.scanning.scanning",
    "score_contrast_loss": "bolus.objectives.scores.score",
    "strip": "bolus.encoders.folders.stripping",
    "supremix_loss": "bolus.objectives.scores.supremix",
    "top_k": "bolus.evaluation.retrieval.retrieve",
    "varcov_loss": "bolus.objectives.contrasts.varcov",
    "write_embeddings": "bolus.embedding.table",
}

__all__ = ["__version__", *sorted(_HOMES)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bolus' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
