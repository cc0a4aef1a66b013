"""Log set-up for the entry points: text lines or JSON lines on standard error."""

import json
import logging
import sys
import time


class JsonFormatter(logging.Formatter):
    """Formats each record as one line of JSON."""

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


class TextFormatter(logging.Formatter):
    """Formats each record as time, level, message and, if it has one, its request id."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return f"{line} [{record.request_id}]" if hasattr(record, "request_id") else line


def set_up_logging(log_format: str, *, access_log: bool) -> None:
    """Write records of level INFO and above to standard error in `log_format` ("text" or "json")."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("oddigit.access").setLevel(logging.INFO if access_log else logging.WARNING)
    for name in ("uvicorn", "uvicorn.error"):  # with its own handlers too, each line would appear twice
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    own = logging.getLogger("uvicorn.access")  # the server has its own line for each request, under plain uvicorn too
    own.handlers.clear()
    own.propagate = False
