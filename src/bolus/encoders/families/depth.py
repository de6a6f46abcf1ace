"""How far from the image a part of an encoder lies, and what stays as it is when only the last blocks are trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from bolus.encoders.families.known import FAMILIES, Family
from bolus.errors import EncoderError


@dataclass(frozen=True)
class Blocks:
    """The blocks of a backbone, which it runs one after the other, and what it runs before them.

    Args:
        path: of the list of modules, in the backbone.
        number: L, how many.
        before: parts of the backbone that are run before them: embeddings, or a stem, even in the first block.

    Example:
        >>> blocks = Blocks("encoder.layer", 2, ("embeddings",))
        >>> [blocks.depth_of(f"backbone.{name}") for name in ("embeddings.cls_token", "encoder.layer.0", "layernorm")]
        [0, 1, 3]
        >>> blocks.left_out(1, num_context=0)
        ['backbone.embeddings', 'backbone.encoder.layer.0']
    """

    path: str
    number: int
    before: tuple[str, ...]

    def depth_of(self, name: str) -> int:
        """The depth of a parameter or module of an encoder, as `Encoder.depth_of` says."""
        part, _, rest = name.partition(".")
        if part == "context":
            return int(rest.partition(".")[0])
        if part == "backbone" and any(f"{rest}.".startswith(f"{each}.") for each in self.before):
            return 0
        if part == "backbone" and rest.startswith(f"{self.path}."):
            return 1 + int(rest.removeprefix(f"{self.path}.").partition(".")[0])
        return self.number + 1

    def left_out(self, unfrozen: int, *, num_context: int) -> list[str]:
        """Modules of an encoder that stay as they are when only the last `unfrozen` blocks are trained.

        Args:
            unfrozen: 0 .. L; 0 leaves out all but the neck, so the last norm too.
            num_context: how many context blocks the encoder has.

        Returns:
            Names of modules; a stem that lies in the first block is named beside it.
        """
        if unfrozen == 0:
            return ["backbone", "context"]
        first = self.number - unfrozen  # the first block that is trained, counted from 0
        blocks = [f"backbone.{self.path}.{block}" for block in range(first)]
        context = [f"context.{block}" for block in range(min(num_context, first + 1))]
        return [*(f"backbone.{part}" for part in self.before), *blocks, *context]


def find_blocks(backbone: nn.Module, family: Family | None) -> Blocks | None:
    """Where a backbone of a family has its blocks; None where that is not known."""
    if family is None or family.blocks is None:
        return None
    before, path, around = list[str](), "", backbone
    for part in family.blocks.split("."):
        children = [name for name, _ in around.named_children()]
        before += [f"{path}{name}" for name in children[: children.index(part)]]
        path, around = f"{path}{part}.", around.get_submodule(part)
    if family.stem is not None and family.stem.startswith(path):
        before.append(family.stem.rpartition(".")[0])
    return Blocks(family.blocks, len(list(around.children())), tuple(before))


def require_blocks(blocks: Blocks | None, model_type: str) -> Blocks:
    """The blocks, or EncoderError with the types of backbone of which they are known."""
    if blocks is None:
        known = ", ".join(sorted(name for name, family in FAMILIES.items() if family.blocks))
        raise EncoderError(f"bolus does not know where a {model_type} backbone keeps its blocks; it does for {known}")
    return blocks
