"""``schedule=wsd_branches``: each branch is, to the bit, the separate run of its budget; killed anywhere, the same bits."""

import json
import signal

import pytest
from corpus import QUICK, command, here, write_corpus
from test_resume import start_and_stop

from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.launcher.jobs import prepare_jobs
from lmablate.results import load_history, load_runs
from lmablate.runs.prepared import load_data, prepare_run
from lmablate.runs.run import RunSession
from lmablate.runs.wsd_branches import expand, trunk_id
from lmablate.stats import paired_differences

STEPS = (12, 30, 60)
BRANCHES = ("schedule=wsd_branches", "schedule.branches=[0.2,0.5,1.0]", "trainer.steps=60")
SAME = ["run_id", "val_loss", "val_bpb", "train_loss", "init_val_loss", "tokens", "trunk"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    text = write_corpus(tmp_path_factory.mktemp("branches") / "text")
    rest = [word for word in QUICK if not word.startswith("trainer.steps")]
    return [*rest, f"data.paths={text}/*.txt", "trainer.precision=fp32", "model.dropout=0.1", "optim.lr=3e-3"]


def train(cfg, die_at: int | None = None) -> None:
    """One run in this process. With `die_at` it is dropped after that step, as a kill would: no end is written."""
    data = load_data(cfg)
    session = RunSession(prepare_run(cfg, data))
    for record in session.trainer.records():
        session.store(record)
        if die_at is not None and record["step"] >= die_at:
            session.lock.release()  # the end of a process frees its locks
            return
    session.finish()


def test_branches_name_the_rate_that_the_rule_gave_their_trunk(words):
    by_rule = [word for word in words if not word.startswith("optim.lr")]
    branches = expand([compose([*BRANCHES, *by_rule, "optim.lr_rule.base=0.01"])])
    (lr,) = {one.optim.lr for one in branches}
    for one in branches:
        assert [word for word in one.overrides if word.startswith("optim.lr")] == [f"optim.lr={lr:g}"]


@pytest.fixture(scope="module")
def separate(words, tmp_path_factory):
    """The runs that the branches must equal: one wsd run a budget, each from its own start."""
    folder = tmp_path_factory.mktemp("separate")
    for steps in STEPS:
        plain = ["schedule=wsd", "schedule.warmup_steps=3", f"trainer.steps={steps}", f"results_dir={folder}"]
        train(compose([*words, *plain, "runtime.compile=false"]))
    return load_runs(folder)[SAME]


def test_a_branch_is_the_separate_run_of_its_budget_to_the_bit(words, separate, tmp_path):
    done = here("lmablate.train", *BRANCHES, *words, f"results_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    runs = load_runs(tmp_path)
    assert runs[SAME].equals(separate)
    assert runs["trunk"].nunique() == 1
    starts = {path.name for path in tmp_path.glob(".trunks/*/step-*.safetensors")}
    assert starts == {f"step-{step:09d}.safetensors" for step in (10, 24, 48)}
    # The short branches did begin at the trunk: their past is the longest one's, at its logging steps.
    history = load_history(tmp_path)
    by_steps = {steps: run for run, steps in zip(runs["run_id"], runs["trainer.steps"], strict=True)}
    past = {steps: history[(history["run_id"] == run) & (history["step"] <= 10)] for steps, run in by_steps.items()}
    assert past[12]["seconds"].tolist() == past[30]["seconds"].tolist() == past[60]["seconds"].tolist()
    assert past[12]["step"].tolist() == [0, 3, 6, 9]
    again = here("lmablate.train", *BRANCHES, *words, f"results_dir={tmp_path}")
    assert "3 done already, 0 to train" in again.stdout


@pytest.mark.parametrize(
    "deaths",
    [
        {60: 10},
        {60: 55, 30: 27},
        {60: 59, 30: 12, 12: 10},
        *(pytest.param(one, marks=pytest.mark.slow) for one in ({60: 9}, {60: 11}, {60: 25}, {30: 29, 12: 11})),
    ],
    ids=str,
)
def test_killed_anywhere_it_ends_with_the_same_bits(words, separate, tmp_path, deaths):
    """`deaths`: by budget, the step after which its run is dropped once; then it is run again."""
    more = [f"results_dir={tmp_path}", "runtime.checkpoint_seconds=0", "runtime.log_every=1", "runtime.compile=false"]
    branches = expand([compose([*BRANCHES, *words, *more])])
    for cfg in reversed(branches):
        if cfg.trainer.steps in deaths:
            train(cfg, die_at=deaths[cfg.trainer.steps])
        train(cfg)
    assert load_runs(tmp_path)[SAME].equals(separate)


@pytest.mark.slow
@pytest.mark.parametrize("at_step", [6, 30])
def test_a_command_that_is_killed_ends_with_the_same_bits(words, separate, tmp_path, at_step):
    every = [*BRANCHES, *words, "runtime.checkpoint_seconds=0", "runtime.log_every=1"]
    assert start_and_stop(every, tmp_path, signal.SIGKILL, at_step) == -signal.SIGKILL
    assert command("lmablate.train", *every, f"results_dir={tmp_path}").returncode == 0
    assert load_runs(tmp_path)[SAME].equals(separate)


@pytest.mark.parametrize("order", [(12, 30, 60), (30, 60, 12)], ids=str)
def test_in_any_order_and_without_the_trunks_checkpoints_the_bits_are_the_same(words, separate, tmp_path, order):
    branches = {c.trainer.steps: c for c in expand([compose([*BRANCHES, *words, f"results_dir={tmp_path}"])])}
    for steps in order:
        train(branches[steps])
        if steps == 30:
            for path in tmp_path.glob(".trunks/*/*"):
                path.unlink()
    assert load_runs(tmp_path)[SAME].equals(separate)


def test_budgets_of_one_trunk_are_never_seeds_of_one_arm(words):
    """Their step counts differ, so they are arms of their own; and the rows say what they share."""
    cfgs = expand([compose([*BRANCHES, *words, f"seed={seed}"]) for seed in (0, 1)])
    jobs, data = prepare_jobs(cfgs)
    trunks = [trunk_id(job.cfg, data[job.run_id]) for job in jobs]
    assert trunks[:3] == trunks[:1] * 3 and trunks[3:] == trunks[3:4] * 3
    assert trunks[0] != trunks[3]
    assert len({job.run_id for job in jobs}) == 6
    cosine, data = prepare_jobs([compose(words)])
    assert trunk_id(cosine[0].cfg, data[cosine[0].run_id]) is None


def test_a_comparison_of_branches_pairs_budgets_and_counts_no_pair_twice(words, tmp_path):
    for seed in (0, 1):
        for cfg in expand([compose([*BRANCHES, *words, f"seed={seed}", f"results_dir={tmp_path}"])]):
            train(cfg)
    pairs = paired_differences(load_runs(tmp_path), "trainer.steps")
    assert [row["n_pairs"] for row in pairs] == [2, 2, 2]  # two seeds, never the six rows


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("schedule.branches=[0.01,1.0]", "before the 3 steps of warmup are over"),
        ("schedule.branches=[0.5,0.501]", "end at different steps"),
        ("schedule.branches=[]", "end at different steps"),
        ("schedule.branches=[1.5]", "less than or equal to 1"),
    ],
)
def test_budgets_that_cannot_be_are_refused(words, word, says):
    with pytest.raises(ConfigError) as caught:
        compose([*BRANCHES, *words, word])
    assert says in str(caught.value)
    with pytest.raises(ConfigError, match="schedule=wsd has no branches"):
        compose(["schedule=wsd", "+schedule.branches=[0.5]"])


def test_the_run_of_the_largest_budget_keeps_the_id_of_the_plain_run(words):
    (branch, *_), _ = prepare_jobs([compose([*BRANCHES, *words])])
    (plain, *_), _ = prepare_jobs([compose(["schedule=wsd", "trainer.steps=60", *words])])
    assert branch.run_id == plain.run_id
    assert json.loads(json.dumps(branch.cfg.model_dump()))["branches"] == list(STEPS)
