"""Writes a run's best checkpoint as a folder for the Hugging Face Hub, with a model card; pushes it if asked to.

python launch/publish.py --workdir=runs/mine --repo=owner/name --license=apache-2.0
python launch/publish.py --workdir=runs/mine/published --repo=owner/name --push
"""

import command_line
from absl import flags

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run; or one that was published, to push it as it is.")
REPO = flags.DEFINE_string("repo", None, "Repository, owner/name: the card says how to restore the model from there.")
OUT = flags.DEFINE_string("out", None, "Folder to write, replaced if it is of the same run; WORKDIR/published.")
PUSH = flags.DEFINE_bool("push", False, "Push it, with HF_TOKEN or the token of `hf auth login`.")
PRIVATE = flags.DEFINE_bool("private", True, "A repository that is made is private; a public one is then refused.")
LICENSE = flags.DEFINE_string("license", None, "The Hub's identifier of a licence, such as apache-2.0.")
IMAGES = flags.DEFINE_integer(
    "images", 0, "Images to show with their maps, which become public; 0: means over images alone.", lower_bound=0
)
flags.mark_flags_as_required(["workdir", "repo"])


def main() -> None:
    from tfcam_jax.sharing.publish import publish

    options = {"push": PUSH.value, "private": PRIVATE.value, "license": LICENSE.value, "images": IMAGES.value}
    publish(WORKDIR.value, REPO.value, OUT.value, **options)


if __name__ == "__main__":
    command_line.run(main)
