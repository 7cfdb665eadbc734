"""A synthetic corpus that needs no download: collages of real photographs with exact, nested masks.

The photographs are inside the wheels of scikit-image and scikit-learn (`pip install '.[quickstart]'`).
Objects are wholes with parts and sub-parts, so that one click is ambiguous as it is in the paper.

    python -m sam_train.data.synthetic --out data/synthetic --num-images 200
"""

from sam_train.data.synthetic.corpus import write_corpus
from sam_train.data.synthetic.scene import SyntheticScene, compose_scene

__all__ = ["SyntheticScene", "compose_scene", "write_corpus"]
