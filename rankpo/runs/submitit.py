"""Setup of tasks from submitit (hydra/launcher=submitit_slurm or submitit_local) as processes of one run."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping

VARIABLE = "SUBMITIT_EXECUTOR"  # submitit sets it in its tasks.
FIRST_PORT, NUM_PORTS = 20000, 20000  # Same values as scripts/slurm_batch.sh.


def join() -> None:
    """Sets the rank and the address of the main process if submitit started this process; else has no effect.

    `accelerate launch` and torchrun are not used in such a sweep, so RANK, WORLD_SIZE, LOCAL_RANK and other variables are
    derived from Slurm's variables, as submitit reads them.
    """
    if os.environ.get(VARIABLE) not in ("slurm", "local") or "RANK" in os.environ:
        return
    import submitit

    job = submitit.JobEnvironment()
    os.environ.update(
        RANK=str(job.global_rank),
        WORLD_SIZE=str(job.num_tasks),
        LOCAL_RANK=str(job.local_rank),
        LOCAL_WORLD_SIZE=str(job.num_tasks // job.num_nodes),
        **meeting_place(job.job_id, list(job.hostnames), os.environ),
    )


def meeting_place(job_id: str, hosts: list[str], environment: Mapping[str, str]) -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT, equal for all tasks of a job and different for jobs that share a node.

    The address is the name of the first node, or a local address for a single node, or RANKPO_ADDRESS if names do not
    resolve. The port is derived from the number of the job, because a free port could be taken before all tasks connect.
    """
    alone = "127.0.0.1" if len(hosts) == 1 else hosts[0]
    port = FIRST_PORT + zlib.crc32(job_id.encode()) % NUM_PORTS
    return {"MASTER_ADDR": environment.get("RANKPO_ADDRESS", alone), "MASTER_PORT": str(port)}
