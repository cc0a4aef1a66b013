"""Log set-up for the entry points: readable lines for people, JSON lines for machines. Never an image, never a key."""

import json
import logging
import sys
import time


class JsonLines(logging.Formatter):
    """One JSON object a record."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if hasattr(record, "request_id"):
            entry["request_id"] = record.request_id
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class Text(logging.Formatter):
    """Time, level, message, and the request id where there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return f"{line} [{record.request_id}]" if hasattr(record, "request_id") else line


def set_up_logging(log_format: str, *, access_log: bool) -> None:
    """Send records to standard error in `log_format` (text or json), from INFO upwards."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if log_format == "json" else Text())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("oddigit.access").setLevel(logging.INFO if access_log else logging.WARNING)
    for name in ("uvicorn", "uvicorn.error"):  # its own handlers would say everything twice
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
