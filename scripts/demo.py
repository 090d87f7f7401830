"""The whole way once: make a corpus, train, add a language model, tune it on dev, evaluate on unseen
voices, transcribe.

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
LANGUAGE_MODEL = RUN_DIR / "words.arpa"
TUNED = RUN_DIR / "tuning" / "demo-dev" / "tuned_decoder.yaml"
REPORTS = {
    "greedy": RUN_DIR / "evaluation" / "demo-test-greedy",
    "beam search with a 3-gram of the training text": RUN_DIR / "evaluation" / "demo-test-beam-lm",
}


def main() -> int:
    started = time.monotonic()
    run("asr.prepare", "corpus=demo")
    if not (RUN_DIR / "report.json").exists():
        going_on = (RUN_DIR / "checkpoints" / "last.ckpt").exists()
        run("asr.train", "experiment=demo", f"resume={RUN_DIR}" if going_on else f"run_dir={RUN_DIR}")
    run("asr.lm", f"text={DATA_DIR / 'train.jsonl'}", "order=3", f"output={LANGUAGE_MODEL}")
    tuning = ["data=demo", f"decoder.lm={LANGUAGE_MODEL}", f"output={TUNED.parent}"]
    run("asr.tune", f"checkpoint={RUN_DIR}", *tuning)
    with_lm = [f"tuned={TUNED}"]
    test = [f"checkpoint={RUN_DIR}", "data=demo", "split=test"]
    for decoder, output in zip([[], with_lm], REPORTS.values(), strict=True):
        run("asr.evaluate", *test, *decoder, f"output={output}", "num_worst=3")
    with open(DATA_DIR / "test.jsonl", encoding="utf-8") as manifest:
        examples = [json.loads(next(manifest)) for _ in range(2)]
    files = [str(DATA_DIR / example["audio_filepath"]) for example in examples]
    run("asr.transcribe", f"checkpoint={RUN_DIR}", *with_lm, *files)
    sys.stdout.write("\nwhat was said in these two files:\n")
    for file, example in zip(files, examples, strict=True):
        sys.stdout.write(f"{file}\t{example['text']}\n")
    sys.stdout.write("\nWER on voices and sentences never heard in training:\n")
    for name, output in REPORTS.items():
        report = json.loads((output / "report.json").read_text(encoding="utf-8"))
        low, high = (100 * report["wer_interval"][side] for side in ("low", "high"))
        sys.stdout.write(f"  {100 * report['wer']:.2f} %  (95 % interval {low:.2f}–{high:.2f})  {name}\n")
        weights = report["provenance"]["decoder_weights"]
        if weights["origin"] != "none":
            sys.stdout.write(f"      weights: {weights['text']}\n")
    minutes = (time.monotonic() - started) / 60
    sys.stdout.write(
        f"all of it took {minutes:.1f} minutes; every error, to hear and see: {output / 'report.html'}\n"
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
