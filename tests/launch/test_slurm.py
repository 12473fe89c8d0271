"""What is asked of Slurm's tools, and what becomes of answers that are missing, late or wrong."""

from pathlib import Path

import pytest

from launch import slurm
from launch.slurm import Partition, SlurmError, SlurmSilentError
from tests.launch.sites import only_tools, put_tool


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("60", 3600),
        ("1:30", 90),
        ("1:00:00", 3600),
        ("2-0", 2 * 86400),
        ("2-3:30", 2 * 86400 + 3 * 3600 + 1800),
        ("1-02:03:04", 93784),
        ("infinite", None),
        ("UNLIMITED", None),
        ("1day", None),
        ("", None),
    ],
)
def test_times_are_read_as_slurm_reads_them(text: str, expected: int | None) -> None:
    assert slurm.seconds(text) == expected


def test_without_slurm_the_error_names_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_tools(tmp_path, monkeypatch)
    with pytest.raises(SlurmError, match="^sbatch: not found; run this where Slurm's tools are, e.g. on a login node$"):
        slurm.submit(tmp_path / "job.sbatch")


def test_a_controller_that_is_silent_is_an_error_and_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = only_tools(tmp_path, monkeypatch)
    put_tool(tools, "squeue", "exec sleep 600")
    put_tool(tools, "sbatch", "exec sleep 600")
    monkeypatch.setattr(slurm.ask, "__defaults__", (0.5, None))
    with pytest.raises(
        SlurmSilentError, match=r"^squeue .* gave no answer in 0 s; try again, or ask the site \(`scontrol ping`\)$"
    ):
        slurm.queue()
    with pytest.raises(SlurmSilentError, match="see with `squeue --me` if the job is there before you submit again"):
        slurm.submit(tmp_path / "job.sbatch")


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("Batch job submission failed: Invalid account or account/partition combination specified", "as cluster.account"),
        ("Batch job submission failed: Invalid qos specification", "as cluster.qos"),
        ("invalid partition specified: gpu", "name a partition of `sinfo -s` as cluster.partition"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "ask for less time"),
        ("Node count specification invalid", "ask for fewer nodes"),
        ("Requested node configuration is not available", "`sinfo -N -l` shows them"),
        ("Invalid generic resource (gres) specification", "cluster.gpu_request names GPUs as this site does not"),
        ("Unable to contact slurm controller (connect failure)", "the controller does not answer"),
        ("unrecognized option '--foo'", "look at the options under cluster.sbatch and cluster.srun"),
    ],
)
def test_a_refusal_says_what_slurm_said_and_what_to_do(
    said: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_tool(only_tools(tmp_path, monkeypatch), "sbatch", f'echo "sbatch: error: {said}" >&2; exit 1'.replace("`", "'"))
    with pytest.raises(SlurmError) as caught:
        slurm.submit(tmp_path / "job.sbatch")
    assert str(caught.value).startswith(f"sbatch --parsable {tmp_path}/job.sbatch failed (1): sbatch: error: {said}; ")
    assert remedy in str(caught.value)


@pytest.mark.parametrize(("answer", "job_id"), [("123", "123"), ("123;far", "123"), ("sbatch: a word of the site\n77", "77")])
def test_the_id_is_read_from_what_sbatch_answers(
    answer: str, job_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_tool(only_tools(tmp_path, monkeypatch), "sbatch", f"printf '{answer}\\n'")
    assert slurm.submit(tmp_path / "job.sbatch") == job_id


@pytest.mark.parametrize("answer", ["", "Submitted batch job"])
def test_an_answer_without_an_id_is_an_error(answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_tool(only_tools(tmp_path, monkeypatch), "sbatch", f"printf '{answer}'")
    with pytest.raises(SlurmError, match=r"^sbatch answered .* which holds no job id; see with `squeue --me` if there is a job$"):
        slurm.submit(tmp_path / "job.sbatch")


def test_the_tools_do_not_see_a_job_around_us_nor_a_users_taste(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_tool(only_tools(tmp_path, monkeypatch), "sinfo", "env")
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "SQUEUE_FORMAT", "SINFO_PARTITION", "SLURM_CONF", "SLURM_CLUSTERS"):
        monkeypatch.setenv(name, "1")
    seen = {line.split("=")[0] for line in slurm.ask(["sinfo"]).splitlines()}
    assert {"SLURM_CONF", "SLURM_CLUSTERS", "LC_ALL"} <= seen
    assert not {"SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "SQUEUE_FORMAT", "SINFO_PARTITION"} & seen


def test_partitions_of_several_kinds_of_nodes_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "gpu*|up|2-00:00:00|30|gpu:a100:4(S:0-1),nvme:1|512000+|64|1-16\\ngpu*|up|2-00:00:00|2|gpu:h100:8|1024000|96|1-16\\n"
    rows += "all|drain|infinite|32|(null)|512000|64|1-infinite\\n"
    put_tool(only_tools(tmp_path, monkeypatch), "sinfo", f"printf '{rows}'")
    assert slurm.partitions() == [
        Partition("gpu", True, True, 16, 172800, ["gpu:a100:4", "nvme:1", "gpu:h100:8"], 1024000, 96),
        Partition("all", False, False, 32, None, [], 512000, 64),
    ]


def test_nodes_that_do_not_answer_are_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_tool(only_tools(tmp_path, monkeypatch), "sinfo", r"printf 'n1|idle\nn1|idle\nn2|mixed*\nn3|drained$\nn4|allocated+\n'")
    expected = {"n1": "idle", "n2": "down", "n3": "drained", "n4": "allocated"}
    assert slurm.node_states(["n1", "n2", "n3", "n4"]) == expected
    assert slurm.node_states([]) == {}


def test_an_error_is_one_line_and_exit_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, slurm.told():
        raise SlurmError("sinfo: not found")
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: sinfo: not found\n"
