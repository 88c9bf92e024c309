"""Image files of every kind that libraries read in ways of their own, made here: what `mcd-jax convert check` shows both sides."""
import io

import numpy as np

SIZE = (72, 96)   # height, width


def made(seed: int = 0) -> dict[str, bytes]:
    """{kind: encoded file} of a smooth random picture; needs Pillow."""
    import PIL.Image
    rng = np.random.default_rng(seed)

    def picture(channels, height=SIZE[0], width=SIZE[1]):
        small = rng.integers(0, 256, (7, 9, channels), np.uint8)
        small = PIL.Image.fromarray(small if channels > 1 else small[..., 0])
        return small.resize((width, height), PIL.Image.Resampling.BICUBIC)

    def encoded(image, kind="PNG", **options):
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    colour, grey = picture(3), picture(1)
    palette, steps = colour.quantize(16), grey.point(lambda level: level // 8 * 8)
    deep = np.asarray(grey).astype(np.uint16) * 256 + rng.integers(0, 256, SIZE).astype(np.uint16)
    turned = PIL.Image.Exif()
    turned[0x112] = 6   # orientation: a quarter to the right
    return {
        "RGB": encoded(colour),
        "RGB JPEG": encoded(colour, "JPEG", quality=90),
        "RGBA": encoded(picture(4)),
        "palette": encoded(palette),
        "palette, transparent": encoded(palette, transparency=bytes([0, 64, 128, 255] * 4)),
        "grey": encoded(grey),
        "grey, transparent": encoded(steps, transparency=int(np.bincount(np.asarray(steps).ravel()).argmax())),
        "16 bit": encoded(PIL.Image.fromarray(deep)),
        "CMYK": encoded(colour.convert("CMYK"), "JPEG", quality=95),
        "EXIF rotated": encoded(colour, "JPEG", quality=90, exif=turned),
        "1 x 40": encoded(picture(3, 1, 40)),
        "40 x 1": encoded(picture(3, 40, 1)),
    }
