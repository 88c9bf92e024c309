"""Lets every process of .venv-peers import torchvision, whose compiled operators don't load beside a torch of another build.

`python tests/peers/operators.py`, by the Makefile: where `import torchvision` fails, a finder is put into site-packages that
declares the operators' signatures first. open_clip and transformers use its transforms only, which are Python.
"""
import pathlib
import subprocess
import sys
import sysconfig

FINDER = """import sys


class Finder:
    declared = []

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "torchvision" and not cls.declared:
            import torch
            if not hasattr(torch.ops.torchvision, "nms"):
                library = torch.library.Library("torchvision", "FRAGMENT")
                cls.declared.append(library)
                for operator in ("nms", "qnms"):
                    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, Finder)
"""


def main():
    if subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True).returncode:
        folder = pathlib.Path(sysconfig.get_path("purelib"))
        (folder / "torchvision_operators.py").write_text(FINDER)
        (folder / "torchvision_operators.pth").write_text("import torchvision_operators\n")
        subprocess.run([sys.executable, "-c", "import torchvision"], check=True)


if __name__ == "__main__":
    main()
