"""A real browser for tests: Chromium without a window, steered over its DevTools protocol."""

import base64
import json
import os
import shutil
import socket
import struct
import subprocess
import time
import urllib.request

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
]


class Browser:
    """with Browser(folder) as b: b.open(url); b.js("document.title"); b.key("1"); b.mouse(x, y)"""

    def __init__(self, profile):
        self.process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port = profile / "DevToolsActivePort"
        try:
            self.wait(lambda: port.exists() and "\n" in port.read_text(), 60)
            self.port = int(port.read_text().split()[0])
            self.attach()
        except BaseException:
            self.__exit__()
            raise

    def attach(self, new_tab: bool = False) -> None:
        """To the first tab, or to a new one."""
        address = f"http://127.0.0.1:{self.port}/json"
        if new_tab:
            request = urllib.request.Request(f"{address}/new", method="PUT")
            tab = json.load(urllib.request.urlopen(request))
        else:
            tabs = json.load(urllib.request.urlopen(f"{address}/list"))
            tab = next(tab for tab in tabs if tab["type"] == "page")
        self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        key = base64.b64encode(os.urandom(16)).decode()
        path = tab["webSocketDebuggerUrl"].split(str(self.port))[1]
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self.incoming, self.number, self.events = self.socket.makefile("rb"), 0, []
        while self.incoming.readline() != b"\r\n":
            pass
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        self.send(json.dumps(message).encode())
        while True:
            message = json.loads(self.receive())
            if message.get("id") == self.number:
                if "navigated" in message.get("error", {}).get("message", ""):
                    return self.call(method, **params)  # the page was just being replaced
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def send(self, data: bytes) -> None:
        """One masked WebSocket frame."""
        if len(data) < 126:
            size = bytes([0x80 | len(data)])
        else:
            size = b"\xfe" + struct.pack(">H", len(data))
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
        self.socket.sendall(b"\x81" + size + mask + masked)

    def receive(self) -> bytes:
        whole = b""
        while True:
            first, size = self.incoming.read(2)
            if size == 126:
                (size,) = struct.unpack(">H", self.incoming.read(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", self.incoming.read(8))
            part = self.incoming.read(size)
            if first & 15 in (0, 1):
                whole += part
                if first & 128:
                    return whole

    def js(self, expression: str):
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    @staticmethod
    def wait(condition, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.03)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait(lambda: self.js("document.readyState") == "complete")

    def key(self, key: str, shift: bool = False) -> None:
        code = key
        if len(key) == 1:
            code = f"Digit{key}" if key.isdigit() else f"Key{key.upper()}"
        pressed = {"key": key, "code": code, "modifiers": 8 if shift else 0}
        if key == "Enter":  # it presses the button that has the focus
            self.call(
                "Input.dispatchKeyEvent",
                type="keyDown",
                text="\r",
                windowsVirtualKeyCode=13,
                **pressed,
            )
        else:
            self.call("Input.dispatchKeyEvent", type="rawKeyDown", **pressed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def mouse(self, *points: tuple[float, float]) -> None:
        """Press at the first point, release at the last."""
        steps = [("mousePressed", points[0])]
        steps += [("mouseMoved", point) for point in points[1:]]
        steps.append(("mouseReleased", points[-1]))
        for kind, (x, y) in steps:
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x,
                y=y,
                button="left",
                buttons=1,
                clickCount=1,
            )

    def resize(self, width: int, height: int, mobile: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def shot(self, path, width: int, height: int, dark: bool = False) -> None:
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        time.sleep(0.4)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(20)
