"""Edit a song in four ways: vary it, repaint its middle, let it go on, and make a loop of the same prompt.

    python examples/edit_a_song.py song.wav "string quartet, 90 bpm, in A minor" --model presto-tiny-s

Files go to `edited/`; each line tells what was kept bit for bit, and how much the sound changes at the seams.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipelines.inference.generator import EditedClip, load_generator, read_sound
from presto_core.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("song", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("--model", default="presto-tiny-s")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("edited"))
    args = parser.parse_args()

    generator, song, how = load_generator(args.model), read_sound(args.song), {"steps": args.steps}
    seconds = song.audio.shape[1] / song.sample_rate_hz
    clips = {
        "varied": generator.edit(song, args.prompt, strength=0.5, **how),
        "repainted": generator.edit(song, args.prompt, regions=[(seconds / 3, 2 * seconds / 3)], **how),
        "extended": generator.extend(song, args.prompt, seconds=5, **how),
        "loop": generator.make_loop(args.prompt, seconds=4, **how),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    for name, clip in clips.items():
        (args.output / f"{name}.wav").write_bytes(clip.to_wav())
        kept = [f"{start:.2f} to {stop:.2f} s" for start, stop in clip.kept] if isinstance(clip, EditedClip) else []
        seams = [f"{seam.change_db:.1f} dB" for seam in clip.seams] if isinstance(clip, EditedClip) else []
        print(f"{name}: {clip.seconds:.1f} s, kept {', '.join(kept) or 'nothing'}, seams {', '.join(seams) or 'none'}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
