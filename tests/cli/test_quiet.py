"""No command asks the network for anything, and none leaves anything in the home folder but fastcnn's own cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dataset_files import write_mnist
from picture_support import write_pictures

# Loaded before the C library, so that what runtimes ask in their own threads, past Python, is seen too.
_EAVESDROPPER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char *what) {
  int file = open(getenv("ASKED"), O_WRONLY | O_APPEND | O_CREAT, 0600);
  if (file < 0) abort();
  if (write(file, what, strlen(what)) < 0 || write(file, "\n", 1) < 0) abort();
  close(file);
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
  note(node ? node : "getaddrinfo");
  return EAI_FAIL;
}

struct hostent *gethostbyname(const char *name) { note(name); return NULL; }

static int outside(const struct sockaddr *to) { return to && (to->sa_family == AF_INET || to->sa_family == AF_INET6); }

int connect(int socket, const struct sockaddr *to, socklen_t length) {
  if (outside(to)) { note("connect"); errno = ENETUNREACH; return -1; }
  int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
  return real(socket, to, length);
}

ssize_t sendto(int socket, const void *bytes, size_t count, int flags, const struct sockaddr *to, socklen_t length) {
  if (outside(to)) { note("sendto"); errno = ENETUNREACH; return -1; }
  ssize_t (*real)(int, const void *, size_t, int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "sendto");
  return real(socket, bytes, count, flags, to, length);
}
"""

# One after the other in one process, which imports PyTorch once.
_RUN_ALL = """
import json, sys
from fastcnn.cli.app import app
codes = {}
for command in json.loads(sys.argv[1]):
    try:
        app(command, prog_name="fastcnn")
    except SystemExit as end:
        codes[" ".join(command)] = end.code
    print("ran:", *command, file=sys.stderr)
with open("codes.json", "w") as file:
    json.dump(codes, file)
"""

COMMANDS = (
    "env",
    "version",
    "list --json",
    "info simple_cnn --plan",
    "export simple_cnn --onnx --attest",
    "export simple_cnn --torchscript",
    "export simple_cnn --pt2",
    "optimize simple_cnn",
    "verify simple_cnn.onnx",
    "verify simple_cnn.pt2",
    "info simple_cnn.onnx",
    "verify simple_cnn.onnx --against simple_cnn",
    "predict simple_cnn.onnx pictures --output answers.jsonl",
    "predict simple_cnn pictures",
    "train simple_cnn --dataset mnist --data data --epochs 1 -o run",
    "evaluate simple_cnn --weights run/simple_cnn.safetensors --dataset mnist --data data --confusion confusion.png",
    "evaluate --compare simple_cnn.onnx simple_cnn --weights mnist --dataset mnist --data data --sheet differ.png",
    "bench simple_cnn --batch-size 1 --rounds 1 --peers eager,torchscript_frozen,onnxruntime,openvino,ncnn,fastcnn* --json result.json",
    "bench page result.json",
    "bench compare result.json result.json",
)


@pytest.fixture(scope="module")
def listening(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Path, Path]:
    """(environment of a process that is listened to, the file of what it asked, its home folder)"""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("listening to native code takes Linux and a C compiler")
    folder = tmp_path_factory.mktemp("listening")
    home = folder / "home"
    home.mkdir()
    source, library = folder / "eavesdropper.c", folder / "eavesdropper.so"
    source.write_text(_EAVESDROPPER)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    # Runtimes report nothing where they believe that they run in continuous integration, or where they are told to.
    spared = ("CI", "TF_BUILD", "JENKINS_URL", "GITHUB_ACTIONS", "ORT_DISABLE_TELEMETRY", "MPLCONFIGDIR", "FASTCNN_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in spared and not name.startswith("XDG_")}
    environment |= {"HOME": str(home), "LD_PRELOAD": str(library), "ASKED": str(folder / "asked.txt"), "OMP_NUM_THREADS": "1"}
    # What PyTorch compiles goes to the system's folder for temporary files.
    environment["TMPDIR"] = str(tmp_path_factory.mktemp("temporary"))
    return environment, folder / "asked.txt", home


def test_a_question_would_be_heard(listening: tuple[dict[str, str], Path, Path]) -> None:
    environment, asked, _ = listening
    code = "import socket\ntry: socket.getaddrinfo('example.org', 443)\nexcept OSError: print('refused')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "refused"
    assert asked.read_text() == "example.org\n"
    asked.unlink()


def test_no_command_asks_anybody_or_leaves_anything(listening: tuple[dict[str, str], Path, Path], tmp_path: Path) -> None:
    environment, asked, home = listening
    write_mnist(tmp_path / "data", train=120, test=40)
    write_pictures(tmp_path / "pictures", 3)
    asked.unlink(missing_ok=True)
    commands = json.dumps([command.split() for command in COMMANDS])
    done = subprocess.run([sys.executable, "-c", _RUN_ALL, commands], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    codes = json.loads((tmp_path / "codes.json").read_text())
    assert codes == dict.fromkeys(COMMANDS, 0), done.stderr
    assert not asked.exists(), asked.read_text()
    left = {path.relative_to(home) for path in home.rglob("*") if path.is_file()}
    assert {path for path in left if path.parts[:2] != (".cache", "fastcnn")} == set()
