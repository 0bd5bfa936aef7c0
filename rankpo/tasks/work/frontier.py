"""The work of task=frontier: interpolations between a start model and trained ones, and the choice of the best."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from rankpo.errors import ConfigError
from rankpo.evaluation.frontier import Candidate, most_aligned, undominated
from rankpo.evaluation.rescaled import Rescaled
from rankpo.models.embedding.model import EmbeddingModel
from rankpo.models.interpolation import interpolate_by_layers
from rankpo.models.load import load_saved
from rankpo.report.frontier_page import frontier_page
from rankpo.storage.json_files import write_json
from rankpo.tasks.models import NONE, ModelOfRun, build_model
from rankpo.tasks.work.export import check_round_trip
from rankpo.tasks.work.frontier_measures import Measures, measured, measures_of
from rankpo.tasks.work.mixing import Say, check_one_start, copied, mean_model, start_model

if TYPE_CHECKING:
    from torch import Tensor

    from rankpo.config.experiment import Experiment
    from rankpo.models.base import RankingModel
    from rankpo.models.kind import ModelKind
    from rankpo.tasks.frontier import Frontier
    from rankpo.tasks.session import Session

FINAL = "FINAL"
PRIOR_WEIGHTS = "prior."  # The prefix of a prior's weights, which are scaled by λ and not by α.


@dataclass(frozen=True, kw_only=True)
class Source:
    """A trained model to mix with the start model.

    folders: one run, or the runs of a soup. prior: a model whose prior is added, or None.
    """

    name: str
    folders: tuple[str, ...] = ()
    prior: EmbeddingModel | None = None
    prior_name: str = ""


def run(task: Frontier, experiment: Experiment) -> list[dict[str, object]]:
    """Returns the rows of the table: the start model and the candidates on the Pareto front."""
    target = Path(task.output) / FINAL
    if target.exists() and not experiment.overwrite:
        raise ConfigError([f"{target} already exists; set overwrite=true or another exp_name"])
    every = (*task.runs, *(folder for soup in task.soups for folder in soup))
    check_one_start(every, task.start, "task.runs and task.soups")
    first = ModelOfRun.of(Path(every[0])) if every else None
    session = task.open(experiment)
    config = experiment.model if first is None else first.kind
    measures = measures_of(task, experiment, config, first, session.logger.say)
    return Search(task, experiment, session, config, first, measures).run(target)


class Search:
    """The search of one frontier.

    config: the kind of the models. first: the first of the runs, or None if only priors are given.
    """

    def __init__(
        self,
        task: Frontier,
        experiment: Experiment,
        session: Session,
        config: ModelKind,
        first: ModelOfRun | None,
        measures: Measures,
    ) -> None:
        self.task, self.experiment, self.session = task, experiment, session
        self.config, self.first, self.measures = config, first, measures
        self.say: Say = session.logger.say

    def run(self, target: Path) -> list[dict[str, object]]:
        """Measures all candidates, writes the chosen one and tests it. Returns the rows of the table."""
        start = self.start()
        base, weights = measured(start, self.measures.choosing), copied(start)
        tested = [{"model": "start", **measured(start, self.measures.testing)}] if self.measures.testing else []
        candidates = [self.candidate("start", base, base)]
        of_source: list[Source | None] = [None]
        for source in self.sources():
            found = self.swept(source, weights, base)
            candidates += found
            of_source += [source] * len(found)
        chosen = most_aligned(candidates, self.task.floor)
        rows = self.tell(candidates, chosen)
        if chosen is None:
            self.say(f"no model keeps {self.task.floor:.0%} of {self.measures.kept}; lower task.floor")
            return rows
        place = next(number for number, candidate in enumerate(candidates) if candidate is chosen)
        own = of_source[place]
        final = start if own is None else self.mixed(own, weights, chosen)
        self.save(target, final, chosen)
        if self.measures.testing:
            tested.append({"model": FINAL, **measured(final, self.measures.testing)})
            self.session.logger.table(tested, "test:")
        return rows

    def tell(self, candidates: Sequence[Candidate], chosen: Candidate | None) -> list[dict[str, object]]:
        """Writes frontier.json and frontier.html, and prints the table. Returns its rows."""
        best = undominated(candidates)
        self.write(candidates, best, chosen)
        shown = [candidates[0], *(candidate for candidate in best if candidate is not candidates[0])]
        rows = [row_of(candidate, candidate is chosen, self.measures.kept) for candidate in shown]
        self.session.logger.table(
            rows, f"{len(candidates)} models measured; the start model, and the models that no other model dominates:"
        )
        return rows

    def start(self) -> RankingModel:
        name = "task.runs" if self.task.runs else "task.soups"
        if self.first is None and self.task.start is None:
            if self.config.load_from is None and self.config.name_or_path is None:
                raise ConfigError(
                    ["task.priors without task.runs need task.start or model.load_from, the model to add them to"]
                )
            return self.prepared(build_model(self.config, self.experiment.explicit, self.say))
        return self.prepared(start_model(self.task.start, self.config, self.first, name, self.say))

    def prepared(self, model: RankingModel) -> RankingModel:
        return self.session.prepared(model).eval()

    def sources(self) -> Iterator[Source]:
        """Yields every trained model alone and with each of the priors."""
        short = len({Path(folder).name for folder in self.task.runs}) == len(self.task.runs)
        trained = [Source(name=Path(folder).name if short else folder, folders=(folder,)) for folder in self.task.runs]
        trained += [
            Source(name=f"mean of {', '.join(Path(folder).name for folder in soup)}", folders=tuple(soup))
            for soup in self.task.soups
        ]
        yield from trained
        for folder in self.task.priors:
            model = prior_of(folder)
            for source in [*trained, Source(name="start")]:
                yield replace(source, prior=model, prior_name=Path(folder).name)

    def model(self, source: Source) -> RankingModel:
        """The trained model of a source, or the start model, with the prior of the source."""
        if not source.folders:
            model = self.start()
        elif len(source.folders) == 1:
            run = ModelOfRun.of(Path(source.folders[0]))
            model = self.prepared(run.final(Path(source.folders[0]) / FINAL, self.say))
        else:
            model = self.prepared(mean_model(source.folders, "task.soups", self.say))
        if source.prior is not None:
            if not isinstance(model, EmbeddingModel):
                raise ConfigError([f"{source.name} is of kind {model.kind}; task.priors need models of kind embedding"])
            model.replace_prior(source.prior.prior, source.prior.settings.prior_weight)
        return self.prepared(model)

    def swept(self, source: Source, start: Mapping[str, Tensor], base: Mapping[str, float]) -> list[Candidate]:
        """The candidates between the start model and a source. Every text is encoded once for each α."""
        model = self.model(source)
        has_prior = isinstance(model, EmbeddingModel) and model.prior is not None
        trained, found = copied(model), []
        for alphas in self.alphas(source, has_prior):
            model.load_state_dict(mix(start, trained, alphas))
            if not has_prior:
                found.append(self.candidate(source.name, measured(model, self.measures.choosing), base, alphas=alphas))
                continue
            assert isinstance(model, EmbeddingModel)
            found += self.weighed(source, model, alphas, base)
        self.say(
            f"{source.name}{' with the prior of ' + source.prior_name if source.prior_name else ''}: {len(found)} models"
        )
        return found

    def weighed(
        self, source: Source, model: EmbeddingModel, alphas: tuple[float, ...], base: Mapping[str, float]
    ) -> list[Candidate]:
        """The candidates of one model, one for each weight of its prior."""
        scaled = Rescaled(model)
        found = []
        for factor in self.task.prior_weights:
            if factor == 0 and (source.prior_name or not any(alphas)):
                continue  # The same source without this prior is measured by itself.
            scaled.prior_weight = factor * model.settings.prior_weight
            values = measured(scaled, self.measures.choosing)
            prior = source.prior_name or source.name
            one = self.candidate(source.name, values, base, alphas=alphas, prior=prior)
            found.append(replace(one, prior_weight=scaled.prior_weight))
        return found

    def alphas(self, source: Source, has_prior: bool) -> Iterator[tuple[float, ...]]:
        if not source.folders:
            yield (0.0,)
            return
        for alphas in product(self.task.alphas, repeat=self.task.layer_groups):
            if any(alphas) or (has_prior and not source.prior_name):
                yield alphas  # The start model with a given prior is a source of its own.

    def candidate(
        self,
        source: str,
        values: Mapping[str, float],
        base: Mapping[str, float],
        *,
        alphas: tuple[float, ...] = (0.0,),
        prior: str = "",
    ) -> Candidate:
        kept, agreement = self.measures.kept, self.measures.agreement
        if not base[kept] > 0:
            raise ConfigError(
                [f"{kept} of the start model is {base[kept]:g}; retention needs a value > 0, so set another task.kept"]
            )
        return Candidate(
            source=source,
            prior=prior,
            alphas=alphas,
            kept=values[kept] / base[kept],
            agreement=values[agreement],
            metrics=values,
        )

    def mixed(self, source: Source, start: Mapping[str, Tensor], chosen: Candidate) -> RankingModel:
        """Returns the model of the chosen candidate."""
        model = self.model(source)
        model.load_state_dict(mix(start, copied(model), chosen.alphas))
        if isinstance(model, EmbeddingModel) and model.prior is not None:
            if chosen.prior_weight:
                model.set_prior(model.prior.weight, chosen.prior_weight)
            else:
                model.replace_prior(None)
        return model

    def save(self, target: Path, model: RankingModel, chosen: Candidate) -> None:
        config = self.config
        base = config.name_or_path or (None if config.load_from is None else Path(config.load_from).name)
        made = {"source": chosen.source, "prior": chosen.prior, "alphas": list(chosen.alphas)}
        measured_on = [evaluator.name for evaluator in self.measures.choosing]
        description = {
            "exp_name": self.experiment.exp_name,
            "base_model": base,
            "frontier": {**made, "prior_weight": chosen.prior_weight, "kept": chosen.kept, "measured_on": measured_on},
        }
        difference = config.save(target, model.cpu(), description)
        check_round_trip(model, config, target, NONE if self.first is None else self.first.loss.needs)
        self.prepared(model)
        self.say(f"{target}: {chosen.label}. Check: loaded again, the outputs differ by at most {difference:.0e}.")

    def write(self, candidates: Sequence[Candidate], best: Sequence[Candidate], chosen: Candidate | None) -> None:
        """Writes frontier.json and frontier.html."""
        folder = Path(self.task.output)
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "kept": self.measures.kept,
            "agreement": self.measures.agreement,
            "floor": self.task.floor,
            "chosen": next((number for number, one in enumerate(candidates) if one is chosen), None),
            "candidates": [asdict(candidate) for candidate in candidates],
        }
        write_json(folder / "frontier.json", record)
        page = frontier_page(candidates, best, chosen, self.measures.kept, self.measures.agreement)
        (folder / "frontier.html").write_text(page, encoding="utf-8")


def mix(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], alphas: tuple[float, ...]) -> dict[str, Tensor]:
    """Interpolates the weights of the two models. Weights of a prior are taken from the trained one."""
    own = {name: tensor for name, tensor in start.items() if not name.startswith(PRIOR_WEIGHTS)}
    return interpolate_by_layers(own, trained, alphas)


def prior_of(folder: str) -> EmbeddingModel:
    """A model with a prior: a folder, or the FINAL of a run. Raises ConfigError for one without a prior."""
    place = Path(folder) / FINAL if (Path(folder) / FINAL).is_dir() else Path(folder)
    model = load_saved(str(place), "cpu")
    if not isinstance(model, EmbeddingModel) or model.prior is None:
        raise ConfigError([f"task.priors: {place} has no prior; make one with task=prior"])
    return model


def row_of(candidate: Candidate, chosen: bool, kept: str) -> dict[str, object]:
    """A row of the table. kept: the name of the retention metric."""
    return {
        "model": f"{candidate.label}{' → FINAL' if chosen else ''}",
        "kept": f"{100 * candidate.kept:.1f} %",
        "agreement": candidate.agreement,
        kept: candidate.metrics[kept],
    }
