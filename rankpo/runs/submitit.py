"""Setup of tasks from submitit (hydra/launcher=submitit_slurm or submitit_local) as processes of one run."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping

VARIABLE = "SUBMITIT_EXECUTOR"  # submitit sets it in its tasks.
FIRST_PORT, NUM_PORTS = 20000, 20000  # Same values as scripts/slurm_batch.sh.


def join() -> None:
    """Tells this process its rank and the others' address, if submitit started it; does nothing elsewhere.

    `accelerate launch` and torchrun, which would say so, have no part in such a sweep: RANK, WORLD_SIZE, LOCAL_RANK
    and the rest come from Slurm's variables as submitit reads them.
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

    The first node's name, this machine's own address where it is the only one, or RANKPO_ADDRESS where names do not
    resolve. The port comes from the job's number: one that a task found free may be taken when the others arrive.
    """
    alone = "127.0.0.1" if len(hosts) == 1 else hosts[0]
    port = FIRST_PORT + zlib.crc32(job_id.encode()) % NUM_PORTS
    return {"MASTER_ADDR": environment.get("RANKPO_ADDRESS", alone), "MASTER_PORT": str(port)}
