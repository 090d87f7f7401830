"""The whole way once: make a corpus, train, evaluate on unseen voices and sentences, transcribe.

Every step is a command that you can type yourself; each is printed before it runs. A training that
was interrupted goes on where it stopped, and one that is finished is not repeated.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

RUN_DIR = Path("runs/demo/make-demo")
DATA_DIR = Path("data/demo")
TEST_REPORT = RUN_DIR / "evaluation" / "demo-test" / "report.json"


def main() -> int:
    started = time.monotonic()
    run("asr.prepare", "corpus=demo")
    if not (RUN_DIR / "report.json").exists():
        going_on = (RUN_DIR / "checkpoints" / "last.ckpt").exists()
        run("asr.train", "experiment=demo", f"resume={RUN_DIR}" if going_on else f"run_dir={RUN_DIR}")
    run("asr.evaluate", f"checkpoint={RUN_DIR}", "data=demo", "split=test", "num_worst=5")
    with open(DATA_DIR / "test.jsonl", encoding="utf-8") as manifest:
        examples = [json.loads(next(manifest)) for _ in range(2)]
    files = [str(DATA_DIR / example["audio_filepath"]) for example in examples]
    run("asr.transcribe", f"checkpoint={RUN_DIR}", *files)
    sys.stdout.write("\nwhat was said in these two files:\n")
    for file, example in zip(files, examples, strict=True):
        sys.stdout.write(f"{file}\t{example['text']}\n")
    wer = json.loads(TEST_REPORT.read_text(encoding="utf-8"))["wer"]
    minutes = (time.monotonic() - started) / 60
    sys.stdout.write(
        f"\ntest WER {100 * wer:.2f} % on voices and sentences never heard in training, in {minutes:.1f} minutes\n"
        f"report: {TEST_REPORT}\n"
        "next: README.md, 'Train on your own recordings'\n"
    )
    return 0


def run(module: str, *arguments: str) -> None:
    command = ["python", "-m", module, *arguments]
    sys.stdout.write(f"\n$ {' '.join(command)}\n")
    sys.stdout.flush()
    finished = subprocess.run([sys.executable, *command[1:]], check=False)
    if finished.returncode != 0:
        sys.exit(finished.returncode)


if __name__ == "__main__":
    sys.exit(main())
