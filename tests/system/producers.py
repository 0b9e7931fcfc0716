"""Other services, as scripts of their own."""

from tests.harness.processes import BIN
from tests.system.scene import Scene

CELERY_PRODUCER = """
import json, sys
from celery import Celery

app = Celery(broker=sys.argv[1])
app.send_task("extend_video.enqueue", queue="extend_video", kwargs=json.loads(sys.argv[2]))
ours = {"worker", "webhook", "emulator", "migrations"}
assert not ours & {name.partition(".")[0] for name in sys.modules}
"""
PYTHON_PRODUCER = """
import json, sys
from worker.producer import enqueue

for wish in sys.argv[1:]:
    print(enqueue(**json.loads(wish)).id)
"""


def run_python(scene: Scene, source: str, *arguments: str, **settings: str) -> str:
    """Run a script outside the project; what it has printed."""
    yard = scene.deployment.yard
    script = yard.directory / "producer.py"
    script.write_text(source)
    ended = yard.run([str(BIN / "python"), "-I", str(script), *arguments], settings)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()
