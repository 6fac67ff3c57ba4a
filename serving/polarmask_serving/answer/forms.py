"""multipart/form-data, read with bounds; TorchServe's own reader takes minutes for many fields."""

from email.message import Message
from email.parser import BytesParser

from polarmask_serving.errors import BadFormError

MAX_FIELDS = 32
_MAX_HEAD = 4_096
"""Bytes of the headers of one field."""
_MAX_BOUNDARY = 70
"""Characters, by RFC 2046."""


def is_form(content_type: object) -> bool:
    """Return whether a body of this Content-Type has fields."""
    return isinstance(content_type, str) and content_type.strip().lower().startswith("multipart/")


def read_form(body: bytes, content_type: str) -> dict[str, bytes]:
    """Return the values of a form's fields by name.

    Raises:
        BadFormError: It can't be read, has a name twice, or more than `MAX_FIELDS` fields.
    """
    described = Message()
    described["content-type"] = content_type
    boundary = (described.get_boundary() or "").encode("ascii", "replace")
    if not 1 <= len(boundary) <= _MAX_BOUNDARY:
        raise BadFormError("the Content-Type of the form names no boundary of 1 to 70 characters")
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary, MAX_FIELDS + 2)
    if len(parts) > MAX_FIELDS + 2:
        raise BadFormError(f"the form has more than {MAX_FIELDS} fields")
    if not parts[-1].startswith(b"--"):
        raise BadFormError("the form breaks off: a line with its boundary and -- has to end it")
    fields: dict[str, bytes] = {}
    for part in parts[1:-1]:
        name, value = _read_field(part)
        if name in fields:
            raise BadFormError(
                f"the form has the field {name[:50]!r} twice; several images go into JSON: "
                '{"instances": [{"b64": "BASE64"}, ...]}'
            )
        fields[name] = value
    return fields


def _read_field(part: bytes) -> tuple[str, bytes]:
    head, ends, value = part.partition(b"\r\n\r\n")
    if not ends or len(head) > _MAX_HEAD:
        raise BadFormError(f"a field's headers have no end, or over {_MAX_HEAD} bytes")
    headers = BytesParser().parsebytes(head.lstrip(), headersonly=True)
    name = headers.get_param("name", header="content-disposition")
    if headers.get_content_disposition() != "form-data" or not isinstance(name, str):
        raise BadFormError('a field has no header `Content-Disposition: form-data; name="..."`')
    return name, value
