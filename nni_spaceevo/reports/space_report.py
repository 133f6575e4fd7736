"""The report of a search over a LUT: one HTML page, and its figures as JSON.

The page is for those who deploy: every number comes with what it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median

from ..files import to_json, write_atomically
from ..jobs.results import LOCAL, SearchResults
from ..lut import QuantizedLUT
from ..page import Html, bullets, facts, join, paragraph, table, tag, write_page
from ..search import QTConfig
from .space_pictures import (
    colour_key,
    front_picture,
    latency_picture,
    loss_pictures,
    search_picture,
    stage_pictures,
)
from .space_settings import Setting
from .space_study import BlockFigures, SpaceFigures, SpaceStudy, StageFigures, study_space

_STYLE = """
.pictures { display: grid; gap: 14px 26px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); }
.wide { overflow-x: auto; margin: 10px 0; }
.wide td, .wide code { white-space: nowrap; }
.wide td, .wide th { padding: 3px 8px; }
.wide th { white-space: normal; }
.key { display: flex; flex-wrap: wrap; gap: 6px 18px; font-size: 13px; margin: 10px 0; }
.widths { display: inline-flex; flex-wrap: wrap; gap: 2px; }
.widths span { padding: 0 5px; border-radius: 3px; color: #9aa0a6; }
.widths b { padding: 0 5px; border-radius: 3px; background: #dbe7f3; font-weight: 600; }
.heat td { padding: 4px 8px; }
.heat .chosen { font-weight: 700; outline: 2px solid var(--ink); outline-offset: -2px; }
"""
# Ends of the colour scale of the tables, and what is coloured fully: a loss of score, and a factor
# of latency, or a loss beyond the chosen one's.
_NEUTRAL, _COSTLY, _GAIN = (246, 247, 248), (233, 143, 84), (96, 160, 208)
_FULL_CHANGE, _FULL_FACTOR, _FULL_EXCESS = 0.05, 3.0, 0.1


def write_space_report(
    lut: QuantizedLUT, results: SearchResults, scoring: QTConfig, folder: Path
) -> Path:
    """Write `report.html` and `report.json`.

    Parameters
    ----------
    lut : the LUT that was searched
    results : the search
    scoring : how its spaces were scored
    folder : where to write

    Returns
    -------
    the page

    Raises
    ------
    ConfigError
        The results are of another hyperspace or scored in another way, or nothing was scored.
    ConstraintError
        Not even the best space has a subnet within a constraint.
    FileAccessError
        The folder cannot be written.
    """
    study = study_space(lut, results, scoring)
    folder = Path(folder)
    write_atomically(folder / "report.json", to_json(study))
    page = folder / "report.html"
    sections = (
        _heading(study),
        _verdict(study),
        _in_short(study),
        _spaces(study),
        _stages(study),
        _block_types(study),
        _how_sure(study),
        _sources(study),
    )
    write_page(page, f"{study.best.space} on {study.lut.device}", *sections, style=_STYLE)
    return page


# ---- numbers in words ----------------------------------------------------------------------------


def _percent(share: float) -> str:
    """A share; small ones with more digits."""
    value = 100 * share
    return f"{value:.1f} %" if abs(value) >= 1 or not value else f"{value:.2g} %"


def _signed(share: float) -> str:
    """A change, with its sign."""
    value = 100 * share
    digits = 1 if abs(value) >= 0.95 else 2
    return f"{value:+.{digits}f} %".replace("-", "\u2212")


def _above(share: float) -> str:
    return f"{_percent(abs(share))} {'above' if share >= 0 else 'below'}"


def _ms(value: float) -> str:
    return f"{value:#.4g}"


def _list(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _constraints(study: SpaceStudy) -> str:
    return _list([f"{T:g}" for T in study.scoring.constraints_ms]) + " ms"


# ---- what comes first ----------------------------------------------------------------------------


def _heading(study: SpaceStudy) -> Html:
    scored = f"{len(study.scores):,} of {study.spaces:,} spaces scored"
    line = (
        f"Best search space of hyperspace {study.lut.hyperspace} for T = {_constraints(study)}; "
        f"{scored}"
    )
    return join(
        tag("h1", f"INT8 search space for {study.lut.device}"), tag("p", line, class_="soft")
    )


def _verdict(study: SpaceStudy) -> Html:
    best, uniform = study.best, study.uniform[0]
    won = best.score >= uniform.score
    gain = (
        f"{_above(best.score / uniform.score - 1)} the best manually designed space, "
        f"{uniform.name} in all stages"
        if uniform.score
        else "no manually designed space has a subnet within T"
    )
    text = f" scores {best.score:.4f}: {gain}. It is proven that no space of the hyperspace scores "
    text += f"more than {_percent(study.bound.gap)} above it."
    banner = paragraph(tag("b", tag("code", best.space)), text)
    return tag("div", banner, class_="banner" if won else "banner failed", role="note")


def _in_short(study: SpaceStudy) -> Html:
    findings = [_within(study, i) for i in range(len(study.scoring.constraints_ms))]
    findings += [f"The device likes {name} least: {t}" for name, t in _dislikes(study)[:1]]
    findings += [_robustness(study), *_unfinished(study)]
    reading = (
        "Loss is how far the quantized stages of a subnet are from the teacher's, summed over the "
        "stages: less is better. A space scores 1 / loss of its best "
        f"{_percent(study.scoring.top / study.scoring.samples)} of subnets within T, a little less "
        f"where not {100 * study.scoring.t:g} % of its subnets are within T"
    )
    if len(study.scoring.constraints_ms) > 1:
        reading += "; the scores for the constraints are added"
    return join(
        tag("h2", "In short"),
        bullets(findings),
        tag("p", f"{reading}. Latencies are the LUT's, in INT8.", class_="soft"),
    )


def _within(study: SpaceStudy, i: int) -> str:
    T, best, uniform = study.scoring.constraints_ms[i], study.best, study.uniform[0]
    if best.top_losses[i] is None:
        return f"None of its subnets is within {T:g} ms; the fastest takes {_ms(best.min_ms)} ms."
    text = (
        f"{_percent(best.shares[i])} of its subnets are within {T:g} ms, and the best of them lose "
        f"{best.top_losses[i]:.3f}; of the best manually designed space"
    )
    if uniform.top_losses[i] is None:
        return f"{text} none is."
    return f"{text} {_percent(uniform.shares[i])} are, and lose {uniform.top_losses[i]:.3f}."


def _robustness(study: SpaceStudy) -> str:
    others = study.settings[1:]
    first = sum(s.rank == 1 for s in others)
    text = (
        f"Scored in {len(others)} other ways, with other t, a and top, it is first among "
        f"{study.compared_spaces} good spaces in {first}"
    )
    behind = 1 - min((s.ratio for s in others if s.ratio is not None), default=1.0)
    if first < len(others):
        text += f" and at most {_percent(behind)} behind the first in the others"
    over = min((s.over_uniform for s in others if s.over_uniform is not None), default=None)
    if over is not None:
        text += f"; beside the best manually designed space it scores {_signed(over - 1)} at worst"
    return f"{text}."


def _unfinished(study: SpaceStudy) -> Iterator[str]:
    """What the search has missed: a neighbour that scores more."""
    better = [(b.change, s, b) for s in study.stages for b in s.blocks if b.change > 0]
    if better:
        change, stage, block = max(better, key=lambda found: found[0])
        yield (
            f"The search is not at its end: {block.block_type} of widths "
            f"{block.window[0]} to {block.window[-1]} in {stage.stage} would score "
            f"{_percent(change)} more. Score more spaces."
        )


# ---- spaces --------------------------------------------------------------------------------------


def _spaces(study: SpaceStudy) -> Html:
    constraints = study.scoring.constraints_ms
    headers = ["", "space", "score"]
    for what in ("within", "loss,"):
        # A line of a heading must not end before its unit.
        headers += [f"{what} {T:g}\N{NO-BREAK SPACE}ms" for T in constraints]
    rows = [_space_row(space) for space in (study.best, *study.uniform)]
    text = (
        "Manually designed spaces have one block type in all stages; of the "
        f"{study.uniform_spaces} that there are, the best of each block type is shown. Loss: mean "
        "of the best within T."
    )
    return join(
        tag("h2", "Beside the manually designed spaces"),
        paragraph(text),
        _wide(table([*headers, "fastest to slowest,\N{NO-BREAK SPACE}ms"], rows, text=2)),
        colour_key(study, with_best=True),
        _pictures(
            search_picture(study),
            front_picture(study),
            latency_picture(study),
            *loss_pictures(study),
        ),
        tag("p", _how_to_read(study), class_="soft"),
    )


def _how_to_read(study: SpaceStudy) -> str:
    top = study.scoring.top / study.scoring.samples
    return (
        "Losses: the right end of a line is the share of a space's subnets within T; where it "
        f"crosses {_percent(top)} its best subnets begin, further left is better. The best subnet "
        "within each latency is found among all combinations of the LUT's rows, not drawn."
    )


def _space_row(space: SpaceFigures) -> list[str]:
    shares = [_percent(share) for share in space.shares]
    losses = ["none" if loss is None else f"{loss:.3f}" for loss in space.top_losses]
    span = f"{_ms(space.min_ms)} to {_ms(space.max_ms)}"
    return [space.name, tag("code", space.space), f"{space.score:.4f}", *shares, *losses, span]


def _wide(content: Html) -> Html:
    """What a narrow screen scrolls by itself."""
    return tag("div", content, class_="wide")


def _pictures(*pictures: Html) -> Html:
    return tag("div", *pictures, class_="pictures")


# ---- stages --------------------------------------------------------------------------------------


def _stages(study: SpaceStudy) -> Html:
    headers = ["stage", "block type", "widths to choose from"]
    rows = [[s.stage, s.block_type, _widths(s)] for s in study.stages]
    rows += [["stem, head, constant", "", ""], ["whole subnet", "", ""]]
    for subnet in study.subnets:
        headers += [f"T = {subnet.constraint_ms:g}: ms", "loss"]
        ms = [*subnet.stage_ms, subnet.other_ms, subnet.latency_ms]
        losses = [f"{loss:.3f}" for loss in subnet.stage_losses]
        for row, value, loss in zip(rows, ms, [*losses, "", f"{subnet.loss:.3f}"], strict=True):
            row += [_ms(value), loss]
    sizes = _list([f"{s.resolution} pixels at {s.constraint_ms:g} ms" for s in study.subnets])
    text = (
        "The space, with the widths of its window marked among all of the stage, and where the "
        f"milliseconds and the loss of its best subnet within each T arise (images of {sizes})."
    )
    return join(
        tag("h2", "The space, stage by stage"), paragraph(text), _wide(table(headers, rows, text=3))
    )


def _widths(stage: StageFigures) -> Html:
    marks = (tag("b" if w in stage.window else "span", str(w)) for w in stage.widths)
    return tag("span", *marks, class_="widths")


def _block_types(study: SpaceStudy) -> Html:
    reference = study.reference
    changes = (
        "How the score changes if one stage is made of another block type, with the best width "
        "window for it and all other stages as they are. The chosen block types are framed."
    )
    why = (
        f"Why: latency for the same loss as the stage of the best subnet within "
        f"{reference.constraint_ms:g} ms (at {reference.resolution} pixels), as a multiple of what "
        "the chosen block type takes. Where a block type never gets there, how much more its best "
        "row loses, at any latency."
    )
    drawn = (
        f"The same in pictures: what each stage can reach at {reference.resolution} pixels, with "
        "all width windows. The dot is the best subnet, the dashed line its loss; the further left "
        "a line crosses it, the more the device likes the block type. The chosen one is thick."
    )
    return join(
        tag("h2", "Block types that the device likes, and why"),
        bullets(tag("span", tag("b", name), f": {text}") for name, text in _dislikes(study)),
        paragraph(changes),
        _heat(study, _change_cell),
        paragraph(why),
        _heat(study, _latency_cell),
        paragraph(drawn),
        colour_key(study, with_best=False),
        _pictures(*stage_pictures(study)),
    )


def _dislikes(study: SpaceStudy) -> list[tuple[str, str]]:
    """Each block type and some words on it, the least liked first."""
    found: dict[str, list[tuple[StageFigures, BlockFigures]]] = {}
    for stage in study.stages:
        for block in stage.blocks:
            if block.block_type != stage.block_type:
                found.setdefault(block.block_type, []).append((stage, block))
    order = sorted(found, key=lambda name: mean(block.change for _, block in found[name]))
    return [(name, _dislike(found[name])) for name in order]


def _dislike(stages: list[tuple[StageFigures, BlockFigures]]) -> str:
    changes = sorted(block.change for _, block in stages)
    text = f"instead of the chosen block type it changes the score by {_signed(changes[0])}"
    if len(stages) > 1:
        text += f" to {_signed(changes[-1])}, in {len(stages)} stages"
    never = sum(block.ms is None for _, block in stages)
    factors = [f for stage, block in stages if (f := _factor(stage, block)) is not None]
    if never:
        text += f"; it cannot lose as little in {never} of {len(stages)}"
    if factors:
        where = ", where it can" if never else ""
        text += f"; the same loss takes {median(factors):.2f} times as long{where} (median)"
    return f"{text}."


def _factor(stage: StageFigures, block: BlockFigures) -> float | None:
    """Latency for the same loss over that of the chosen block type."""
    chosen = stage.chosen.ms
    return block.ms / chosen if block.ms is not None and chosen else None


_Cell = Callable[[StageFigures, BlockFigures, float], Html]


def _heat(study: SpaceStudy, cell: _Cell) -> Html:
    """Block types down, stages across; `cell` is given the reference subnet's loss too."""
    head = tag("tr", tag("th"), *(tag("th", stage.stage) for stage in study.stages))
    losses = study.reference.stage_losses
    rows = (
        tag(
            "tr",
            tag("th", blocks[0].block_type),
            *(cell(*place) for place in zip(study.stages, blocks, losses, strict=True)),
        )
        for blocks in zip(*(stage.blocks for stage in study.stages), strict=True)
    )
    return _wide(tag("table", head, *rows, class_="heat"))


def _change_cell(stage: StageFigures, block: BlockFigures, _: float) -> Html:
    chosen = block.block_type == stage.block_type
    text = "chosen" if chosen and not block.change else _signed(block.change)
    return _coloured(text, -block.change / _FULL_CHANGE, chosen)


def _latency_cell(stage: StageFigures, block: BlockFigures, loss: float) -> Html:
    chosen = block.block_type == stage.block_type
    if block.ms is None:
        excess = block.least_loss / loss - 1 if loss else math.inf
        return _coloured(f"loss {_signed(excess)}", excess / _FULL_EXCESS, chosen)
    factor = _factor(stage, block)
    if chosen or not factor:
        return _coloured(f"{_ms(block.ms)} ms", 0.0, chosen)
    return _coloured(f"{factor:.2f}×", math.log(factor) / math.log(_FULL_FACTOR), chosen)


def _coloured(text: str, cost: float, chosen: bool) -> Html:
    """A cell: 1 in the colour of what costs much, 0 in a neutral one, -1 in that of a gain."""
    end, share = (_COSTLY if cost > 0 else _GAIN), min(abs(cost), 1.0)
    mixed = (round(a + (b - a) * share) for a, b in zip(_NEUTRAL, end, strict=True))
    colour = "#" + "".join(f"{value:02x}" for value in mixed)
    kind = {"class_": "chosen"} if chosen else {}
    return tag("td", text, style=f"background:{colour}", **kind)


# ---- how sure ------------------------------------------------------------------------------------


def _how_sure(study: SpaceStudy) -> Html:
    bound = study.bound
    parts = zip(study.scoring.constraints_ms, bound.scores, strict=True)
    each = _list([f"{score:.4f} at {T:g} ms" for T, score in parts])
    proven = (
        f"The best space's exact score is {bound.best_score:.4f}. A calculation over the whole LUT "
        f"proves that no space of the hyperspace scores more than {bound.score:.4f} ({each}): at "
        f"most {_percent(bound.gap)} is left to gain, and likely less, for no space need reach it."
    )
    text = (
        "Whether the choice depends on how spaces are scored: the best space among "
        f"{study.compared_spaces} (the best found, and the best manually designed space of each "
        "block type), scored in other ways. A search in that way may find others still. "
        f"t is the share of subnets wanted within T, a how strongly less is punished, top how many "
        f"of {study.scoring.samples:,} subnets count as the best."
    )
    headers = ("scored with", "then best", "rank", "behind the then best", "to the best manual")
    return join(
        tag("h2", "How sure is it?"),
        paragraph(proven),
        paragraph(text),
        _wide(table(headers, map(_setting_row, study.settings), text=2)),
    )


def _setting_row(setting: Setting) -> list[str]:
    behind = "" if setting.ratio is None else f"{100 * (1 - setting.ratio):.2f} %"
    over = "" if setting.over_uniform is None else _signed(setting.over_uniform - 1)
    own = setting.changed or "the search's own settings"
    return [own, tag("code", setting.first), str(setting.rank), behind, over]


# ---- where it comes from -------------------------------------------------------------------------


def _sources(study: SpaceStudy) -> Html:
    lut, scoring = study.lut, study.scoring
    other = ", ".join(f"{_ms(ms)} ms at {size} pixels" for size, ms in lut.other_ms.items())
    local = study.experiment == LOCAL
    rows = [
        ("hyperspace", f"{lut.hyperspace} ({lut.hyperspace_fingerprint}), {study.spaces:,} spaces"),
        ("search", "in one process" if local else f"NNI experiment {study.experiment}"),
        ("spaces scored", f"{len(study.scores):,}"),
        ("latency constraints T", _constraints(study)),
        ("scoring", _scoring(scoring)),
        ("LUT", f"{study.lut_rows:,} rows ({study.lut_fingerprint})"),
        ("losses", f"against teacher {lut.teacher}"),
        ("latencies", f"{lut.device} ({lut.device_fingerprint})"),
        ("stem, head, constant", f"{other}; {lut.other_ms_source}"),
    ]
    text = "The figures of this page are in report.json beside it."
    return join(tag("h2", "Where the figures come from"), facts(rows), paragraph(text))


def _scoring(scoring: QTConfig) -> str:
    how = (
        f"exact: all subnets, the best {scoring.top} in {scoring.samples:,} averaged"
        if scoring.estimator == "exact"
        else f"sampled: the best {scoring.top} of {scoring.samples:,} drawn subnets averaged"
    )
    return f"{how}; t = {scoring.t:g}, a = {scoring.a:g}, seed {scoring.seed}"
