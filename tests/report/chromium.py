"""A page in headless Chromium, driven over the pipe of its DevTools protocol: no network, no driver to install."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path


def found():
    """The browser's path, None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One tab; a context manager. `errors` holds what the console and the security policy complained about."""

    def __init__(self, profile, *, width=1280, height=1600):
        self.errors, self._number, self._rest = [], 0, b""
        commands, answers = os.pipe(), os.pipe()

        def as_three_and_four():  # the numbers that Chromium reads from and writes to
            reading, writing = os.dup(commands[0]), os.dup(answers[1])
            os.dup2(reading, 3)
            os.dup2(writing, 4)

        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        self._process = subprocess.Popen(
            [found(), *flags, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=as_three_and_four,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands[0])
        os.close(answers[1])
        self._write, self._read = commands[1], answers[0]
        self._session = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.resize(width, height)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._session = None
        self.send("Browser.close")
        self._process.wait(30)
        os.close(self._write)
        os.close(self._read)

    def send(self, method, **params):
        self._number += 1
        number, message = self._number, {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self, seconds=120):
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], seconds)
            assert ready, "chromium does not answer"
            chunk = os.read(self._read, 1 << 20)
            assert chunk, "chromium has ended"
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        event = json.loads(message)
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif event.get("method") == "Network.requestWillBeSent" and params["type"] != "Document":
            self.errors.append(f"asked for {params['request']['url']}")
        return event

    def resize(self, width, height, *, phone=False):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.send("Emulation.setDeviceMetricsOverride", **size)

    def scheme(self, name):
        """What the reader's system prefers: "light" or "dark"."""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def scripts(self, allowed):
        self.send("Emulation.setScriptExecutionDisabled", value=not allowed)

    def open(self, path, hash=""):
        """Show a file, and wait until it is loaded."""
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=f"{Path(path).resolve().as_uri()}{hash}")
        for _ in range(600):
            # evaluate runs even where the page's own scripts may not
            if self.value("location.protocol + document.readyState") == "file:complete":
                return
            time.sleep(0.05)
        raise AssertionError(f"{path}: not loaded")

    def value(self, expression):
        """What JavaScript says; a promise is waited for."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def key(self, key, text=""):
        codes = {"Enter": 13, "Tab": 9, "/": 191, " ": 32}
        more = {"windowsVirtualKeyCode": codes.get(key, 0), **({"text": text} if text else {})}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **more)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=codes.get(key, 0))

    def write(self, text):
        self.send("Input.insertText", text=text)

    def screenshot(self, path, *, whole=False):
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(shot["data"]))
