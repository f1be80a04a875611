"""Let two models play the same prompt from the same noise, and write what they play with spectrograms side by side.

    python examples/compare_models.py presto-tiny-s presto-tiny-ls "string quartet, 90 bpm" --steps 4

A model is one of the package, or of your registry: models:/NAME@ALIAS, or an artifact's id.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from pipelines.evaluate.spectrograms import plot_spectrograms_with_axes
from pipelines.inference.generator import load_generator
from presto_core.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs=2, metavar="MODEL")
    parser.add_argument("prompt")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("compared"))
    args = parser.parse_args()

    generators = {name: load_generator(name) for name in args.models}
    args.output.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for name, generator in generators.items():
        generator.generate(args.prompt, steps=args.steps, seed=args.seed)  # the first clip also loads the decoder
        started = time.perf_counter()
        (clip,) = generator.generate(args.prompt, steps=args.steps, seed=args.seed)
        print(f"{name}: {clip.seconds:.1f} s of music in {time.perf_counter() - started:.2f} s")
        (args.output / f"{Path(name).name}.wav").write_bytes(clip.to_wav())
        drawn[name] = clip.audio.mean(axis=0)
    picture = plot_spectrograms_with_axes(drawn, clip.sample_rate_hz)
    (args.output / "spectrograms.png").write_bytes(picture)
    print(f"listen and look: {args.output}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
