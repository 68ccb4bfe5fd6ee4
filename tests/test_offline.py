"""The default profile needs no internet, and a notebook's error output stays empty."""

import json
import os
import subprocess
import sys

import pytest

MAIN_JOB = """
import ipaddress, json, socket

def refuse(*arguments, **options):
    raise AssertionError(f"asked for the network: {arguments}")

connect = socket.socket.connect
def local_only(self, address):
    if self.family != socket.AF_UNIX and not ipaddress.ip_address(address[0]).is_loopback:
        refuse(address)
    return connect(self, address)
socket.socket.connect = socket.socket.connect_ex = local_only
socket.getaddrinfo = socket.gethostbyname = refuse

import tlkeras as tlk
task = tlk.load_task("digits", labels_per_class=2)
backbone = tlk.load_backbone("glyph_resnet", image_size=32)
model = tlk.add_head(backbone, len(task.classes))
run = tlk.fit_stages(model, tlk.recipes.head_only(epochs=1), task.train.take(1), verbose=0)
print(json.dumps(run.history["loss"]))
"""


def python(code, **variables):
    """Runs code in a fresh interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment | variables,
        capture_output=True,
        text=True,
    )


def test_the_main_job_runs_without_a_network_and_in_silence(tmp_path):
    done = python(MAIN_JOB, TLKERAS_DATA_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 1
    assert done.stderr == ""


CHATTER = """
import os
from tlkeras.utils.quiet import without_chatter
with without_chatter():
    os.write(2, b"I0000 00:00:1 1 port.cc:153] oneDNN is on\\nF0000 00:00:1 fatal\\nno library\\n")
"""


def test_what_is_no_chatter_is_passed_on():
    assert python(CHATTER).stderr == "F0000 00:00:1 fatal\nno library\n"


@pytest.mark.parametrize(
    ("variables", "quiet"), [({}, True), ({"TF_CPP_MIN_LOG_LEVEL": "0"}, False)]
)
def test_a_user_who_wants_tensorflows_messages_gets_them(variables, quiet):
    code = "import sys, tlkeras; print(any('utils.quiet' in repr(f) for f in sys.meta_path))"
    assert python(code, **variables).stdout == f"{quiet}\n"
