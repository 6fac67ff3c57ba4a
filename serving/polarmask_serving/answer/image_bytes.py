"""The bytes of a JPEG or PNG -> pixels; what costs too much is refused before it is decoded."""

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from polarmask_serving.answer.image_file import Budget, read_image_file
from polarmask_serving.errors import DamagedImageError, EmptyRequestError, NotAnImageError


def decode_image(data: object, budget: Budget | None = None) -> NDArray[np.uint8 | np.uint16]:
    """Turn the bytes of a JPEG or PNG into an upright image, (H, W, 3) RGB.

    EXIF orientation is applied. Grey is repeated, palettes are looked up, CMYK is
    converted, transparency is dropped, 16 bits stay 16: as training reads its images.

    Args:
        data: The bytes.
        budget: Of the request that it comes with; None: it is the only image.

    Raises:
        RequestError: Not an image, too large or costly (no pixel is decoded then), damaged.
    """
    if not isinstance(data, bytes | bytearray):
        raise NotAnImageError("send the bytes of a JPEG or PNG file")
    if not data:
        raise EmptyRequestError("the image has no bytes")
    file = read_image_file(bytes(data), Budget() if budget is None else budget)
    try:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH
        image = cv2.imdecode(np.frombuffer(file.data, np.uint8), flags)
    except cv2.error as error:
        raise DamagedImageError("the image can't be decoded") from error
    if image is None:
        raise DamagedImageError("the image breaks off or is damaged")
    return cast(NDArray[np.uint8 | np.uint16], image)
