"""The search for subnets of a job's supernet: which ones, how good, and where that is kept."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import torch
from torch import Tensor
from tqdm import tqdm

from ..device import training_device
from ..errors import ConfigError
from ..files import Record, digest, exclusive, read_json, to_json, write_atomically
from ..hyperspace import SpaceCode, SubnetCode, chain_kernels, mflops, mparams
from ..lut import LatencyModel
from ..quant import INT8
from ..search.priced import PricedSubnets
from ..search.subnets import (
    EvaluatedSubnet,
    SubnetSearch,
    best_within,
    constraint_at,
    latency_span,
    pareto_front,
)
from ..supernet.evaluation import EVALUATION, calibrated_subnet, evaluate
from .command import supernet_command as command
from .distillation import images
from .job import Job
from .predictors import is_of_job, known_predictor, prepared_predictor
from .supernets import load_trained, supernet_path

SCHEMA = 1
# In `subnets_folder`: the outcome of the last search.
RESULTS = "subnets.json"
# A kill loses at most this much work.
_SAVE_EVERY_S = 2.0


class SubnetResult(Record, frozen=True):
    """What a subnet reaches, INT8, BatchNorm measured on training images.

    Attributes
    ----------
    subnet : subnet code
    accuracy : share of the searched half of the held-out images whose label it names
    loss : mean cross-entropy of the same
    """

    subnet: str
    accuracy: float
    loss: float


class Evaluations(Record, frozen=True):
    """The contents of `evaluations.json`: every subnet that was ever evaluated of a supernet.

    Attributes
    ----------
    schema : version of the file format
    made_for : hash of what accuracies depend on; those of another supernet are left aside
    subnets : in the order in which they were evaluated
    """

    schema: int
    made_for: str
    subnets: tuple[SubnetResult, ...] = ()

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ConfigError(f"evaluations schema {self.schema}; this version reads {SCHEMA}")


class FoundSubnet(Record, frozen=True):
    """A subnet that a search has found.

    Attributes
    ----------
    subnet : subnet code
    predicted_ms : by the job's predictor
    accuracy : on the held-out images that the search has looked at
    unseen_accuracy : on the others; None of subnets that are not the best within a constraint
    mflops, mparams : millions of multiply-accumulates and of parameters
    """

    subnet: str
    predicted_ms: float
    accuracy: float
    mflops: float
    mparams: float
    unseen_accuracy: float | None = None


class SubnetResults(Record, frozen=True):
    """The contents of `subnets.json`: the outcome of a search.

    Attributes
    ----------
    schema : version of the file format
    space, seed : of the supernet
    made_for : hash of what accuracies depend on, as of `Evaluations`
    device, device_fingerprint : of the latency predictor
    asked_ms : latency constraints T in milliseconds, ascending
    constraints_ms : those of them within which there is a subnet
    best : the most accurate subnet within each of these
    front : the subnets than which no evaluated one is as fast and more accurate
    evaluated : predicted milliseconds and accuracy of each subnet that the search asked for
    """

    schema: int
    space: str
    seed: int
    device: str
    constraints_ms: tuple[float, ...]
    best: tuple[FoundSubnet, ...]
    front: tuple[FoundSubnet, ...]
    evaluated: tuple[tuple[float, float], ...]
    # Empty in files of before; they are refused as those of another supernet.
    made_for: str = ""
    asked_ms: tuple[float, ...] = ()
    device_fingerprint: str = ""

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ConfigError(f"subnets schema {self.schema}; this version reads {SCHEMA}")

    @property
    def outcome(self) -> str:
        """A line for people for each constraint."""
        lines = [f"{self.space}, seed {self.seed}: {len(self.evaluated)} subnets evaluated"]
        lines += [f"T = {T:g} ms: no subnet" for T in self.asked_ms if T not in self.constraints_ms]
        for T, found in zip(self.constraints_ms, self.best, strict=True):
            lines.append(
                f"T = {T:g} ms: {found.accuracy:.2%} at {found.predicted_ms:.4g} ms predicted, "
                f"{found.mflops:.4g} MFLOPs: {found.subnet}"
            )
        return "\n".join(lines)


def subnets_folder(job: Job, space: SpaceCode, seed: int | None = None) -> Path:
    """Where the subnets found of a supernet lie, and what they were found by."""
    return job.subnets_path / f"seed{job.seed(seed)}" / str(space)


def found_subnets(job: Job, space: SpaceCode, seed: int | None = None) -> SubnetResults:
    """What the last search of a supernet's subnets has found.

    Raises
    ------
    ConfigError
        There has been none, its file is damaged, or it was of another supernet, such as one
        trained since, or by another predictor.
    """
    path = subnets_folder(job, space, seed) / RESULTS
    if not path.is_file():
        raise ConfigError(
            f"no {path}; search the supernet's subnets first "
            f"(`{command(job, 'subnets', space, seed)}`)"
        )
    found = read_json(path, SubnetResults)
    if found.made_for != _made_for(job, space, seed):
        raise ConfigError(
            f"{path}: found in another supernet, or with other images or settings, than {space} "
            f"has now; search again (`{command(job, 'subnets', space, seed)}`)"
        )
    device, before = known_predictor(job), found.device_fingerprint
    if device is None or not before or not is_of_job(job, found.device, device):
        return found
    if before != device.fingerprint:
        raise ConfigError(
            f"{path}: found by predictor {found.device}, but {device.name} is another one now "
            f"({device.fingerprint}); search again (`{command(job, 'subnets', space, seed)}`), "
            "which evaluates few subnets anew"
        )
    return found


def _made_for(job: Job, space: SpaceCode, seed: int | None) -> str:
    """Hash of what accuracies depend on: the supernet, the images, how statistics are taken."""
    path, config = supernet_path(job, space, seed), job.config.supernet
    supernet = path.read_bytes() if path.is_file() else b""
    settings = to_json((config.batch_size, config.recalibration_batches))
    return digest(EVALUATION, supernet, images(job).fingerprint, settings)


class SubnetEvaluator:
    """Evaluates subnets of a trained supernet, and remembers what it has evaluated.

    Every second held-out image, in an order of chance, is for the search. The others tell what its
    choice is worth, for the best of many is better on the images by which it was chosen.

    Parameters
    ----------
    job, space, seed : the supernet's

    Raises
    ------
    ConfigError
        There is no such supernet yet, or the images have no labels.
    CheckpointError
        The supernet's file is damaged, or has no LSQ+ phase behind it.
    """

    def __init__(self, job: Job, space: SpaceCode, seed: int | None = None) -> None:
        self._config, self._data = job.config.supernet, images(job)
        device = training_device(self._config.device, "supernet")
        self.supernet = load_trained(job, space, seed).to(device)
        if self._data.test_size < 2:
            raise ConfigError(f"{job.path}: subnets are chosen by held-out images; there are none")
        order = torch.randperm(self._data.test_size, generator=torch.Generator().manual_seed(0))
        self._searched, self._unseen = order[::2], order[1::2]
        self.made_for = _made_for(job, space, seed)

    def __call__(self, code: SubnetCode) -> SubnetResult:
        """Evaluate a subnet on the searched half of the held-out images."""
        found = self._evaluate(code, self._searched)
        return SubnetResult(subnet=str(code), accuracy=found[0], loss=found[1])

    def unseen_accuracy(self, code: SubnetCode) -> float:
        """Accuracy on the other half."""
        return self._evaluate(code, self._unseen)[0]

    def _evaluate(self, code: SubnetCode, which: Tensor) -> tuple[float, float]:
        batches = self._config.batch_size, self._config.recalibration_batches
        subnet = calibrated_subnet(self.supernet, code, self._data, *batches, INT8)
        found = evaluate(subnet, self._data, which)
        return found.accuracy, found.loss


class EvaluationsFile:
    """Evaluated subnets on disk; the caller holds `exclusive(path)`.

    Parameters
    ----------
    path : the file; one of another supernet is begun anew
    made_for : hash of what accuracies depend on
    """

    def __init__(self, path: Path, made_for: str) -> None:
        self.path, self._made_for = path, made_for
        self.results: dict[str, SubnetResult] = {}
        self._saved_at = 0.0
        if path.is_file():
            kept = read_json(path, Evaluations)
            if kept.made_for == made_for:
                self.results = {result.subnet: result for result in kept.subnets}

    def add(self, result: SubnetResult) -> None:
        """Keep a result; it is on disk within two seconds of work, or after `save`."""
        self.results.setdefault(result.subnet, result)
        if time.monotonic() - self._saved_at >= _SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        content = Evaluations(
            schema=SCHEMA, made_for=self._made_for, subnets=tuple(self.results.values())
        )
        write_atomically(self.path, msgspec.json.encode(content))
        self._saved_at = time.monotonic()


def new_search(
    job: Job,
    space: SpaceCode,
    device: LatencyModel,
    constraints_ms: tuple[float, ...] = (),
    seed: int | None = None,
) -> SubnetSearch:
    """A search by the job's settings, at its beginning.

    Parameters
    ----------
    constraints_ms : instead of those of the job

    Raises
    ------
    ConstraintError
        A constraint below the fastest subnet.
    """
    config = job.config.subnets
    number = job.seed(seed)
    subnets = PricedSubnets(job.hyperspace, space, device)
    given = constraints_ms or config.constraints_ms
    constraints = given or job.config.subnet_constraints_ms
    if constraints and not given:
        # Those of the space's search: it may have no subnet within the tightest of several.
        fastest, _ = latency_span(subnets, number)
        constraints = tuple(T for T in constraints if fastest <= T) or constraints
    if not constraints:
        quantiles = job.config.subnet_quantiles
        constraints = tuple(constraint_at([subnets], q, number) for q in quantiles)
    return SubnetSearch(subnets, constraints, config, number)


def search_subnets(
    job: Job,
    space: SpaceCode,
    seed: int | None = None,
    constraints_ms: tuple[float, ...] = (),
    results_path: Path | None = None,
) -> SubnetResults:
    """Search the subnets of a trained supernet; what was evaluated before is not evaluated again.

    Parameters
    ----------
    job, space, seed : the supernet's
    constraints_ms : latency constraints T in milliseconds; those of the job by default
    results_path : file for the outcome; by default `subnets.json` in `subnets_folder`, the last
        search of which is what `seqnet1`, `seqnet2`, … stand for

    Returns
    -------
    the outcome

    Raises
    ------
    SpaceEvoError
        As `SubnetEvaluator` and `new_search`; or another process searches the same supernet.
    """
    folder = subnets_folder(job, space, seed)
    with exclusive(folder / "evaluations.json"):
        evaluator = SubnetEvaluator(job, space, seed)
        device = prepared_predictor(job)
        search = new_search(job, space, device, constraints_ms, seed)
        kept = EvaluationsFile(folder / "evaluations.json", evaluator.made_for)
        most = search.config.most_evaluations(len(search.constraints_ms))
        with tqdm(total=most, desc="Evaluating", unit="subnet", leave=False) as bar:
            while codes := search.ask():
                for code in codes:
                    if str(code) not in kept.results:
                        kept.add(evaluator(code))
                    search.tell(code, kept.results[str(code)].accuracy)
                    bar.update()
        kept.save()
        results = results_of(job, search, device, seed, evaluator)
        write_atomically(results_path or folder / RESULTS, to_json(results))
    return results


def results_of(
    job: Job,
    search: SubnetSearch,
    device: LatencyModel,
    seed: int | None,
    evaluator: SubnetEvaluator,
) -> SubnetResults:
    """The outcome of a search that is finished."""
    evaluated = search.evaluated
    within = {T: best_within(evaluated, T) for T in search.constraints_ms}
    best = {T: subnet for T, subnet in within.items() if subnet is not None}
    space = search.subnets.space

    def found(subnet: EvaluatedSubnet, unseen: float | None = None) -> FoundSubnet:
        blocks = job.hyperspace.all_blocks(space, subnet.code)
        kernels = chain_kernels(blocks, subnet.code.resolution)
        return FoundSubnet(
            subnet=str(subnet.code),
            predicted_ms=subnet.ms,
            accuracy=subnet.accuracy,
            mflops=mflops(kernels),
            mparams=mparams(kernels),
            unseen_accuracy=unseen,
        )

    return SubnetResults(
        schema=SCHEMA,
        space=str(space),
        seed=job.seed(seed),
        made_for=evaluator.made_for,
        device=device.name,
        device_fingerprint=device.fingerprint,
        asked_ms=search.constraints_ms,
        constraints_ms=tuple(best),
        best=tuple(found(s, evaluator.unseen_accuracy(s.code)) for s in best.values()),
        front=tuple(found(s) for s in pareto_front(evaluated)),
        evaluated=tuple((s.ms, s.accuracy) for s in evaluated),
    )
