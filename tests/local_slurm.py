"""A Slurm cluster of this machine alone, in a folder of its own: munged, slurmctld and slurmd, without root's files."""

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time

DAEMONS = ("munged", "slurmctld", "slurmd")
SECONDS_TO_START = 30.0


def why_absent():
    """What is missing to run one; "" if nothing is. Debian: apt-get install slurm-wlm munge."""
    missing = [name for name in (*DAEMONS, "sbatch", "squeue", "scancel") if shutil.which(name) is None]
    if missing:
        return f"no Slurm here: {', '.join(missing)} not found (Debian: slurm-wlm, munge)"
    return "" if os.geteuid() == 0 else "slurmd needs root"


@contextlib.contextmanager
def local_slurm(folder, cpus=2):
    """Runs the cluster below `folder`; gives the environment in which Slurm's commands find it.

    Only what is started here is ended, by its process id. Two jobs of one core run at once, on any machine: Slurm is
    told of `cpus` cores, whatever there are.
    """
    folder.mkdir(parents=True)
    folder.chmod(0o755)  # munged refuses folders that others may write to
    host = socket.gethostname().split(".")[0]
    write_settings(folder, host, cpus)
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    munge = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key"]
    munge += [f"--{name}-file={folder}/munge.{name}" for name in ("log", "pid", "seed")]
    with contextlib.ExitStack() as started:
        for command in (munge, ["slurmctld", "-D", "-i"], ["slurmd", "-D", "-N", host]):
            started.enter_context(running(command, folder / f"{command[0]}.out", environment))
        wait_until_idle(environment, folder)
        try:
            yield environment
        finally:
            subprocess.run(["scancel", f"--user={getpass.getuser()}"], env=environment, check=False)
            wait_until_idle(environment, folder)  # what jobs have left would outlive the daemons


def write_settings(folder, host, cpus):
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    lines = {
        "ClusterName": "here",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmctldPort": free_port(),
        "SlurmdPort": free_port(),
        "AuthType": "auth/munge",
        "CryptoType": "crypto/munge",
        "AuthInfo": f"socket={folder}/munge.socket",
        "SlurmUser": getpass.getuser(),
        "SlurmdUser": "root",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.pid",
        "SlurmctldLogFile": folder / "slurmctld.log",
        "SlurmdLogFile": folder / "slurmd.log",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "SlurmdParameters": "config_overrides",
        "SchedulerParameters": "sched_min_interval=100000",
        "MpiDefault": "none",
        "SwitchType": "switch/none",
        "ReturnToService": 2,
        "KillWait": 30,
        "NodeName": f"{host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=2000 State=UNKNOWN",
        "PartitionName": f"here Nodes={host} Default=YES MaxTime=60 State=UP",
    }
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    (folder / "slurm.conf").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def running(command, log, environment):
    path = shutil.which(command[0])
    with log.open("w") as output:
        process = subprocess.Popen([path, *command[1:]], stdout=output, stderr=output, env=environment)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_idle(environment, folder):
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end:
        done = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True, check=False)
        if done.stdout.strip() == "idle":
            return
        time.sleep(0.2)
    logs = "\n".join(path.read_text()[-2000:] for path in folder.glob("*.out"))
    raise RuntimeError(f"Slurm did not start: {done.stdout}{done.stderr}\n{logs}")
