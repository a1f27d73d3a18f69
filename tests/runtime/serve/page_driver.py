"""A program for the environment that has Qt WebEngine, a Chromium without a window: uses the page by keyboard alone.

`python page_driver.py URL FOLDER`: writes `found.json` and screenshots into the folder.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.update(
    QT_QPA_PLATFORM="offscreen", QTWEBENGINE_DISABLE_SANDBOX="1", QTWEBENGINE_CHROMIUM_FLAGS="--disable-gpu"
)

from PyQt6.QtCore import Qt, QUrl
from PyQt6.QtTest import QTest
from PyQt6.QtWebEngineCore import QWebEnginePage, QWebEngineProfile, QWebEngineUrlRequestInterceptor
from PyQt6.QtWebEngineWidgets import QWebEngineView
from PyQt6.QtWidgets import QApplication

WAIT_S = 60.0


class Recorder(QWebEngineUrlRequestInterceptor):
    """What the pages ask for, by scheme and host."""

    def __init__(self):
        super().__init__()
        self.origins = set()

    def interceptRequest(self, info):
        url = info.requestUrl()
        self.origins.add(f"{url.scheme()}://{url.authority()}" if url.authority() else url.scheme())


class Page(QWebEnginePage):
    """Keeps what the console says."""

    def __init__(self, profile, said):
        super().__init__(profile)
        self._said = said

    def javaScriptConsoleMessage(self, level, message, line, source):
        self._said.append(f"{source}:{line}: {message}")


class Browser:
    """One window."""

    def __init__(self, recorder, said):
        self.profile = QWebEngineProfile()  # off the record
        self.profile.setUrlRequestInterceptor(recorder)
        self.view = QWebEngineView()
        self.page = Page(self.profile, said)
        self.view.setPage(self.page)
        self.view.resize(1000, 760)
        self.view.show()

    def open(self, url):
        loaded = []
        self.page.loadFinished.connect(loaded.append)
        self.page.load(QUrl(url))
        until(lambda: loaded)
        assert loaded[0], url

    def js(self, code):
        found = []
        self.page.runJavaScript(code, found.append)
        until(lambda: found)
        return found[0]

    def until(self, code):
        until(lambda: self.js(code))

    def key(self, key):
        QTest.keyClick(self.view.focusProxy() or self.view, key)
        QTest.qWait(30)

    def type(self, text):
        QTest.keyClicks(self.view.focusProxy() or self.view, text)
        QTest.qWait(30)

    def focused(self):
        return self.js("document.activeElement.id || document.activeElement.tagName")

    def images(self):
        return self.js("[...document.querySelectorAll('#images img')].map((each) => each.src)")

    def end(self):
        self.view.close()
        self.page.deleteLater()


def until(holds):
    end = time.monotonic() + WAIT_S
    while not holds():
        if time.monotonic() > end:
            raise SystemExit("it never holds")
        QTest.qWait(10)


def tab_to(browser, name):
    """By Tab alone; the way there."""
    way = []
    for _ in range(20):
        if browser.focused() == name:
            return way
        browser.key(Qt.Key.Key_Tab)
        way.append(browser.focused())
    raise SystemExit(f"Tab never reaches {name}: {way}")


def fill(browser, name, text):
    tab_to(browser, name)
    QTest.keyClick(browser.view.focusProxy(), Qt.Key.Key_A, Qt.KeyboardModifier.ControlModifier)
    browser.type(text)


def main(url, folder):
    application = QApplication(sys.argv[:1])
    recorder, said, found = Recorder(), [], {}
    first = Browser(recorder, said)
    first.open(url)
    first.until("document.querySelectorAll('#sampler option').length > 1")
    found["way"] = tab_to(first, "draw") + tab_to(first, "num")
    fill(first, "num", "5")
    fill(first, "seed", "12")
    tab_to(first, "sampler")
    first.type("ddim")
    fill(first, "steps", "20")
    first.key(Qt.Key.Key_Return)  # in a field: the form is sent
    first.until("document.getElementById('status').textContent === '5 images'")
    found["images"] = first.images()
    found["link"] = first.js("document.getElementById('link').href")
    found["alternatives"] = first.js("[...document.querySelectorAll('#images img')].map((each) => each.alt)")
    QTest.qWait(400)  # until it is painted
    first.view.grab().save(str(Path(folder, "page.png")))

    second = Browser(recorder, said)  # somebody else's
    second.open(found["link"])
    second.until("document.getElementById('status').textContent === '5 images'")
    found["again"] = second.images()
    # A long request is stopped by keyboard, too.
    fill(second, "num", "200")
    fill(second, "steps", "1000")
    second.key(Qt.Key.Key_Return)
    second.until("!document.getElementById('stop').disabled")
    tab_to(second, "stop")
    second.key(Qt.Key.Key_Space)
    second.until("document.getElementById('status').textContent === 'Stopped'")
    # What the service refuses is said.
    fill(second, "num", "1")
    fill(second, "steps", "5")
    second.js("document.getElementById('sampler').add(new Option('no such')); "
              "document.getElementById('sampler').value = 'no such'; 0")  # fmt: skip
    second.key(Qt.Key.Key_Return)
    second.until("document.getElementById('status').className === 'error'")
    found["refusal"] = second.js("document.getElementById('status').textContent")

    docs = Browser(recorder, said)
    docs.open(f"{url}/docs")
    docs.until("document.querySelectorAll('.opblock').length > 3")
    QTest.qWait(300)
    docs.view.grab().save(str(Path(folder, "docs.png")))
    found["agent"] = first.js("navigator.userAgent")
    found["origins"], found["console"] = sorted(recorder.origins), said
    Path(folder, "found.json").write_text(json.dumps(found))
    for browser in (first, second, docs):
        browser.end()
    application.processEvents()


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # Chromium's own threads
