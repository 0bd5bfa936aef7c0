"""Check for lists and updates without a training signal, made on the data before the weights are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rankpo.data.batch import labels_of
from rankpo.data.loaders.ranking import DataLoader, Group
from rankpo.losses.base import Loss
from rankpo.losses.contrastive import ContrastiveLoss
from rankpo.losses.scored_pairs import CoSENTLoss

MAX_LISTS = 20_000  # The count stops here, unless no list so far has a training signal.
REMEDY = "task=mine finds negatives, or choose a loss that fits this data"


def check(loss: Loss, loader: DataLoader, say: Callable[[str], None]) -> None:
    """Reports how many lists and updates of the first epoch have no training signal; ValueError if none has any."""
    if isinstance(loss, ContrastiveLoss) and loss.negatives == "in_batch":
        _check_pools(loss, loader, say)
        return
    if isinstance(loss, CoSENTLoss):
        _check_orders(loss, loader, say)
        return
    seen = empty = 0
    for groups in _updates(loader):
        teaches = loss.teaches(labels_of(groups)).tolist()
        seen, empty = seen + len(groups), empty + teaches.count(False)
        if seen >= MAX_LISTS and empty < seen:
            break
    if empty == seen:
        raise ValueError(
            f"no list has a training signal for {_name(loss)}: {_why(loss)} in all {seen:,} of them; {REMEDY}"
        )
    if empty:
        part = "" if seen >= len(loader.items) else " first"
        say(f"{empty:,} of the{part} {seen:,} lists have no training signal for {_name(loss)}: {_why(loss)}")


def _check_pools(loss: ContrastiveLoss, loader: DataLoader, say: Callable[[str], None]) -> None:
    """Reports updates in which no query has a negative, either among its own or among other queries' candidates."""
    seen = lists = 0
    empty: list[int] = []
    for groups in _updates(loader):
        if not _has_negative(loss, loader, groups):
            empty.append(seen)
        seen, lists = seen + 1, lists + len(groups)
        if lists >= MAX_LISTS and len(empty) < seen:
            break
    size = f"trainer.batch_size={loader.batch_size}"
    if len(empty) == seen:
        raise ValueError(
            f"no update has a training signal for {_name(loss)}: with {size}, no query of any update has a negative; set a "
            f"larger trainer.batch_size, or give queries negatives of their own: {REMEDY}"
        )
    if empty == [loader.updates_per_epoch - 1]:
        say(
            f"the last update of an epoch has no training signal for {_name(loss)}: with {len(loader.items):,} examples and "
            f"{size}, it has one query without negatives"
        )
    elif empty:
        say(f"{len(empty):,} of {seen:,} updates have no training signal for {_name(loss)}: no query has a negative")


def _check_orders(loss: CoSENTLoss, loader: DataLoader, say: Callable[[str], None]) -> None:
    """Reports updates in which all pairs of texts have one label, so that none has to score above another."""
    seen = lists = empty = 0
    for groups in _updates(loader):
        labels = labels_of(groups)
        known = (labels.relevance if labels.grades is None else labels.grades)[labels.mask]
        empty += bool((known == known[:1]).all())
        seen, lists = seen + 1, lists + len(groups)
        if lists >= MAX_LISTS and empty < seen:
            break
    why = f"with trainer.batch_size={loader.batch_size}, all pairs of an update have the same label"
    if empty == seen:
        raise ValueError(
            f"no update has a training signal for {_name(loss)}: {why}; set a larger trainer.batch_size, or give data with "
            "different labels"
        )
    if empty:
        say(f"{empty:,} of {seen:,} updates have no training signal for {_name(loss)}: {why}")


def _has_negative(loss: ContrastiveLoss, loader: DataLoader, groups: Sequence[Group]) -> bool:
    everybody = {int(row) for group in groups for row in group.candidates}
    if loss.query_query:
        everybody |= {group.query for group in groups}
    for group in groups:
        pool = {int(row) for row in group.candidates} if group.own_negatives else everybody
        own = {int(group.candidates[0]), group.query}
        if loss.false_negatives.same_text:
            own |= set(loader.table.known_positives(group.query).tolist())
        if pool - own:
            return True
    return False


def _updates(loader: DataLoader) -> Iterator[list[Group]]:
    """The groups of each update of the first epoch."""
    return (loader.groups(step) for step in range(loader.updates_per_epoch))


def _name(loss: Loss) -> str:
    return type(loss).__name__


def _why(loss: Loss) -> str:
    """Returns the reason why a list has no training signal for the loss."""
    if isinstance(loss, ContrastiveLoss):
        return "loss.negatives=own, and the positive has no negative"
    return "there is one candidate, or all labels are equal,"
