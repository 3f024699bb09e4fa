"""The verdict of an evaluation: three sentences that claim no more than the intervals allow.

Where an interval is missing, or includes no difference, the sentence calls the result unclear.
"""

from __future__ import annotations

import math

from musicgen_dreamboothing.console import plural
from musicgen_dreamboothing.evaluation.result import (
    HIGHER,
    LOWER,
    NEITHER,
    CopyCounts,
    Figure,
    Interval,
    Nearest,
    Originality,
)

BETTER, WORSE, CHANGED, UNCLEAR = "better", "worse", "changed", "unclear"
BY_CHANCE, GAINED = "by chance", "gained"  # neither model follows; only the fine-tuned one does
LEARNED = 0.5  # lower end of the gap closed from which a style is learned; below that "something of" it
TOLERATED_LOSS = 0.1  # share of a figure, at most, that still counts as no loss
SAME_DRIFT = 0.5  # of the drift to a single sound a prompt, at most, that counts as no change
COLLAPSED = 0.5  # of the diversity before, at most
FAR_LESS = 0.99  # from here on no percentage is given: the base knew nothing of it
PLACES = 3  # of near-copies that are named
CONTROL = 2  # times the near-copies of the base, at most, that are no more than likeness of the style
ADHERENCE = {
    "text_score": "their words",
    "neutral_text_score": "the words of neutral prompts",
    "tempo_adherence": "the tempo",
    "key_adherence": "the key",
    "melody_adherence": "the melody",
}


def verdict(figures: list[Figure], nearest: list[Nearest], originality: Originality, word: str) -> list[str]:
    """Did it learn `word`, does it still follow prompts, is it original: one sentence each.

    It reads style_distance, style_gap_closed, loss, the figures of `ADHERENCE`, drift, diversity and neutral_diversity;
    any may be missing or without values.
    """
    known = {figure.key: figure for figure in figures if figure.tuned is not None and math.isfinite(figure.tuned)}
    return [_style(known, word), _prompts(known), _originality(nearest, originality)]


def direction(figure: Figure) -> str:
    """`better`, `worse`, `changed` (where neither is better) or `unclear`; empty where nothing is compared."""
    if figure.change is None:
        return ""
    low, high = figure.change
    if not (low > 0 or high < 0):  # NaN too
        return UNCLEAR
    if figure.better == NEITHER:
        return CHANGED
    return BETTER if (low > 0) == (figure.better == HIGHER) else WORSE


def clock(seconds: float) -> str:
    """`0:41`."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _style(known: dict[str, Figure], word: str) -> str:
    """Whether its clips sound like the songs, and whether it predicts songs that it was not trained on."""
    sound, loss = _sound(known, word), _loss(known)
    if not sound:
        sound = (
            f"How near its clips are to {word} was not measured"
            if loss
            else f"Whether it learned {word} was not measured"
        )
    return f"{sound}; {loss}." if loss else f"{sound}."


def _sound(known: dict[str, Figure], word: str) -> str:
    """By the share of the distance to the songs that is gone, or by the distance alone where there is no share."""
    distance, share = known.get("style_distance"), known.get("style_gap_closed")
    if distance is None:
        return ""
    songs = f"your songs (the {distance.scope} that it was compared with)" if distance.scope else "your songs"
    change = direction(distance)
    if change == WORSE:
        return f"It did not learn {word}: its clips are further from {songs} than those of the base model"
    if share is not None and share.tuned is not None and share.tuned_interval is not None:
        way = f"{_percent(share.tuned)} of the way from the base model to {songs}"
        span = _percents(share.tuned_interval)
        if change == BETTER:
            amount = word if share.tuned_interval[0] > LEARNED else f"something of {word}"
            return f"It learned {amount}: its clips went {way} ({span}){_too_near(distance)}"
        return f"Whether it learned {word} is unclear: its clips went {way}, but it may be anything from {span}"
    if change == BETTER:
        return (
            f"It learned something of {word}: its clips are nearer to {songs} than those of the base model, which were "
            f"not surely apart from them{_too_near(distance)}"
        )
    if distance.change is None:
        return f"Whether it learned {word} is unclear: there are too few clips or songs to compare"
    return (
        f"Whether it learned {word} is unclear: neither are the base model's clips surely apart from {songs}, nor did "
        "the distance surely change"
    )


def _too_near(distance: Figure) -> str:
    """Below 0 clips are more like the songs than these are like each other."""
    if distance.tuned_interval is None or distance.tuned_interval[1] >= 0:
        return ""
    return ", nearer than your songs are to each other, as copies are"


def _loss(known: dict[str, Figure]) -> str:
    """The change of the loss as that of the perplexity, exp(loss)."""
    loss = known.get("loss")
    if loss is None or loss.tuned is None or loss.base is None:
        return ""
    songs = f"the {loss.scope}" if loss.scope else "held-out songs"
    if loss.change is None or not all(map(math.isfinite, loss.change)):
        values = f"from {loss.base:.2f} to {loss.tuned:.2f} nats"
        return f"the loss on {songs} went {values}, but there is too little music to tell how sure that is"
    change = direction(loss)
    if change == UNCLEAR:
        return f"whether the perplexity on {songs} fell is unclear"
    less = 1 - math.exp(loss.tuned - loss.base)
    ends = sorted(abs(1 - math.exp(end)) for end in loss.change)
    span = _percents((ends[0], ends[1]))
    if change == BETTER and ends[0] > FAR_LESS:
        return f"the perplexity on {songs} is far lower"
    if change == BETTER:
        return f"the perplexity on {songs} is {_percent(less)} lower ({span})"
    return f"the perplexity on {songs} is {_percent(-less)} higher ({span}), a sign of overfitting"


def _prompts(known: dict[str, Figure]) -> str:
    asked: dict[str, list[str]] = {}
    for key, name in ADHERENCE.items():
        if key in known:
            asked.setdefault(_preserved(known[key]), []).append(name)
    return "; ".join([*_follows(asked), *_side_effects(known)]) + "."


def _preserved(figure: Figure) -> str:
    """`better` where the interval allows no loss above a tenth, `worse` where it excludes none, else `unclear`.

    A base that does not surely lie above chance has nothing to preserve: then `by chance` where the fine-tuned model
    does not either, `gained` where it is surely better than the
    base.
    """
    if figure.change is None or figure.base is None:
        return UNCLEAR
    low, high = figure.change if figure.better != LOWER else (-figure.change[1], -figure.change[0])
    if figure.chance is not None and not _is_above(figure.base_interval, figure.chance):
        if low > 0:
            return GAINED
        if high < 0:
            return WORSE
        return UNCLEAR if _is_above(figure.tuned_interval, figure.chance) else BY_CHANCE
    if figure.base and low >= -TOLERATED_LOSS * abs(figure.base):
        return BETTER
    return WORSE if high < 0 else UNCLEAR


def _is_above(interval: Interval | None, value: float) -> bool:
    return interval is not None and interval[0] > value


def _follows(asked: dict[str, list[str]]) -> list[str]:
    same, lost, unclear = (asked.get(state, []) for state in (BETTER, WORSE, UNCLEAR))
    gained, by_chance = asked.get(GAINED, []), asked.get(BY_CHANCE, [])
    rest = f", but for {_list(unclear)} it is unclear" if unclear else ""
    clauses = []
    if lost:
        clauses.append(
            f"it follows prompts less well than the base model: clips fit {_list(lost)} less often or less well{rest}"
        )
    elif same:
        clauses.append(f"it still follows prompts: clips fit {_list(same)} as well as before{rest}")
    elif unclear or not asked:
        clauses.append(f"whether it still follows prompts {'is unclear' if unclear else 'was not measured'}")
    if gained:
        clauses.append(f"clips fit {_list(gained)} better than those of the base model")
    if by_chance:
        clauses.append(
            f"clips do not measurably fit {_list(by_chance)} better than by chance, but the base model does not follow "
            f"{'it' if len(by_chance) == 1 else 'them'} either"
        )
    return [clauses[0][0].upper() + clauses[0][1:], *clauses[1:]]


def _side_effects(known: dict[str, Figure]) -> list[str]:
    drift = [_drift(known["drift"])] if "drift" in known else []
    clips = {"diversity": "clips of one prompt", "neutral_diversity": "clips of other music"}
    return drift + [
        sentence for key, what in clips.items() if key in known and (sentence := _diversity(known[key], what))
    ]


def _drift(drift: Figure) -> str:
    """0 is as before, 1 as if each prompt had only one sound left."""
    if drift.tuned is None or drift.tuned_interval is None:
        return "whether other music changed is unclear"
    low, high = drift.tuned_interval
    if high <= SAME_DRIFT:
        return "other music changed hardly more than it does from seed to seed"
    if low > 0:
        return f"other music changed, too: drift {drift.tuned:.1f} ({low:.1f} to {high:.1f}; 0 is no change)"
    return "whether other music changed is unclear"


def _diversity(diversity: Figure, clips: str) -> str:
    if diversity.base is None or diversity.change is None or direction(diversity) != WORSE:
        return ""
    if diversity.change[1] < (COLLAPSED - 1) * diversity.base:
        return f"{clips} differ less than half as much as before, a sign of too much training"
    return f"{clips} are more alike than before"


def _originality(nearest: list[Nearest], originality: Originality) -> str:
    """How many clips are near-copies, how many of the base's are, and what was not checked."""
    tuned = originality.tuned
    reasons = "; ".join(originality.not_checked)
    if not tuned.clips:
        return "Whether it copies your songs was not measured."
    if not tuned.flagged and not tuned.by_codes and not tuned.by_sound:
        return f"Whether it copies your songs could not be checked: {reasons}."
    result = _copies(nearest, originality) if tuned.flagged else _no_copies(originality)
    return "; ".join([result, *_limits(originality)]) + "."


def _no_copies(originality: Originality) -> str:
    """Of the clips that were checked in some way."""
    tuned, base = originality.tuned, originality.base
    checked = max(tuned.by_codes, tuned.by_sound)
    result = f"None of {plural(checked, 'clip')}{_kinds(originality)} is close to a song it was trained on"
    return f"{result}; {_control(base)}" if base.flagged else f"{result}, and none of the base model's is"


def _copies(nearest: list[Nearest], originality: Originality) -> str:
    tuned, base = originality.tuned, originality.base
    places = [f"{one.song}, {clock(one.song_at)}" for one in by_strength(nearest) if one.is_copy]
    more = f"; and {len(places) - PLACES} more" if len(places) > PLACES else ""
    songs = places[0] if len(places) == 1 else f"songs it was trained on: {'; '.join(places[:PLACES])}{more}"
    many = (
        f"{tuned.flagged} of {plural(tuned.clips, 'clip')}{_kinds(originality)} {_are(tuned.flagged)} close to {songs}"
    )
    if base.flagged and tuned.flagged * base.clips <= CONTROL * base.flagged * tuned.clips:
        return f"{many}; but {_control(base)}, too, which was not trained on them: that may be likeness of the style"
    return f"{many}; {_control(base)}"


def _control(base: CopyCounts) -> str:
    return f"{base.flagged} of the {plural(base.clips, 'clip')} of the base model {_are(base.flagged)}"


def _kinds(originality: Originality) -> str:
    """Said where there are clips of both kinds."""
    if not originality.style_clips or not originality.neutral_clips:
        return ""
    return f" ({originality.style_clips} of the style, {originality.neutral_clips} of other music)"


def _limits(originality: Originality) -> list[str]:
    """What the sentence does not cover."""
    limits = [f"it could not be checked {reason}" for reason in originality.not_checked]
    if originality.clips_by_sound < originality.clips and originality.tuned.by_sound:
        limits.append(f"by sound only {originality.clips_by_sound} of {originality.clips} training clips were searched")
    return limits


def by_strength(nearest: list[Nearest]) -> list[Nearest]:
    """The strongest evidence of a copy first."""
    return sorted(nearest, key=lambda one: -one.strength)


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _list(names: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _percent(share: float) -> str:
    return f"{_hundredths(share)} %"


def _percents(span: Interval) -> str:
    """`12 to 34 %`."""
    return f"{_hundredths(span[0])} to {_percent(span[1])}"


def _hundredths(share: float) -> str:
    return f"{100 * share:.{0 if abs(share) >= 0.0995 else 1}f}".replace("-", "−")
