"""A real browser without a window, driven over Chromium's DevTools protocol.

Debian's `chromium-headless-shell` suffices; websocket-client comes with the Kubernetes client.
"""

import base64
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from contextlib import contextmanager

import websocket

PROGRAMS = ("chromium-headless-shell", "chromium", "google-chrome", "chrome-headless-shell")


def find_browser():
    """Return the path of a Chromium, or None."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


@contextmanager
def browser(folder, *, width=1200, height=860):
    """Start one with its profile in a folder and yield its only page."""
    command = [find_browser(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-dev-shm-usage", "--remote-debugging-port=0", "--no-proxy-server"]
    command += [f"--user-data-dir={folder}", f"--window-size={width},{height}", "about:blank"]
    with (folder / "browser.log").open("wb") as log:
        # Debian's program is a script that starts the browser: both end as one group.
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        port = _wait(lambda: (folder / "DevToolsActivePort").read_text().split()[0], 60)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            (target,) = [each for each in json.load(answer) if each["type"] == "page"]
        page = Page(websocket.create_connection(target["webSocketDebuggerUrl"], timeout=90))
        try:
            yield page
        finally:
            page.close()
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


class Page:
    """One page.

    Attributes:
        complaints: Errors in the console, and what the policy forbids.
    """

    def __init__(self, connection):
        self._connection = connection
        self._numbers = itertools.count(1)
        self.complaints = []
        for domain in ("Page", "Runtime", "Log", "DOM", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """Return the result of a method of the protocol."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            reply = json.loads(self._connection.recv())
            if reply.get("id") == number:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                return reply["result"]
            self._note(reply)

    def _note(self, event):
        if event["method"] == "Runtime.exceptionThrown":
            self.complaints.append(event["params"]["exceptionDetails"].get("exception"))
        if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.complaints.append(event["params"]["entry"]["text"])

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script):
        """Return the value of an expression, awaited if it is a promise."""
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def until(self, script, seconds=60):
        """Wait until an expression is true and return its value."""
        return _wait(lambda: self.run(script), seconds, script)

    def text(self, selector):
        """Return what a reader sees of an element; empty if it is hidden."""
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def choose_file(self, selector, path):
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def slide(self, selector, value):
        self.run(
            f"(e => {{ e.value = {value}; e.dispatchEvent(new Event('input')); }})"
            f"(document.querySelector({json.dumps(selector)}))"
        )

    def click(self, selector):
        """Click in the middle of an element, as a mouse does."""
        self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView()")
        box = self.run(
            f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()"
        )
        x, y = box["left"] + box["width"] / 2, box["top"] + box["height"] / 2
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def resize(self, width, height, *, dark=False):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path):
        """Write a screenshot of the whole page, PNG."""
        reply = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(reply["data"]))

    def close(self):
        self._connection.close()


def _wait(ask, seconds, what="the browser"):
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found := ask():
                return found
        except (OSError, IndexError):
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not after {seconds} s")
        time.sleep(0.05)
