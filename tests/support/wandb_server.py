"""A stand-in for W&B's server on this machine: what a run sends arrives in `runs`."""

import json
import re
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Answers what the library asks when it begins, resumes and fills a run, and takes its files."""

    daemon_threads = True

    def __init__(self, before=None):
        """Answers at once. `before`: the server that was closed, to open again."""
        super().__init__(("127.0.0.1", before.server_port if before else 0), Handler)
        self.runs = before.runs if before else {}  # by id, see `UpsertBucket`
        self.refuse = 0  # the HTTP status of an upload that is refused
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """The library may close a connection at any time."""

    def close(self):
        """From now on connections are refused; those that are open end."""
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args):
        pass

    def answer(self):
        if self.server.socket.fileno() < 0:  # the server is closed
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.endswith("/graphql"):
            asked = json.loads(body)
            self.reply({"data": self.query(asked.get("operationName"), asked["variables"])})
        elif found := re.fullmatch(r"/files/\w+/\w+/(\w+)/file_stream", self.path):
            if self.server.refuse:
                self.reply({"error": "refused"}, self.server.refuse)
            else:
                self.stream(self.server.runs[found[1]], json.loads(body))
                self.reply({})
        else:
            if found := re.fullmatch(r"/upload/(\w+)/(.*)", self.path):
                self.server.runs[found[1]]["files"][found[2]] = body
            self.reply({})

    do_GET = do_POST = do_PUT = answer

    def stream(self, run, sent):
        history = sent.get("files", {}).get("wandb-history.jsonl")
        if history:
            assert history["offset"] == len(run["history"])
            run["history"] += map(json.loads, history["content"])
        run["exitcode"] = sent.get("exitcode", run["exitcode"])

    def query(self, name, given):
        runs = self.server.runs
        if name == "RunResumeStatus":
            run = runs.get(given["name"])
            bucket = run and {
                **bucket_of(given["name"], run),
                "summaryMetrics": "{}",
                "logLineCount": 0,
                "eventsLineCount": 0,
                "historyTail": json.dumps([json.dumps(row) for row in run["history"][-1:]]),
                "eventsTail": "[]",
                "tags": [],
                "wandbConfig": '{"t": {}}',  # without it, the library does not resume
            }
            return {
                "model": {
                    "id": "bW9kZWw=",
                    "name": "p",
                    "entity": {"id": "bWU=", "name": "me"},
                    "bucket": bucket,
                }
            }
        if name == "UpsertBucket":
            fresh = {"history": [], "config": "{}", "name": "", "group": "", "exitcode": None, "files": {}}
            inserted = given["name"] not in runs
            run = runs.setdefault(given["name"], fresh)
            for field, key in (("config", "config"), ("displayName", "name"), ("groupName", "group")):
                run[key] = given[field] or run[key]
            project = {"id": "cA==", "name": given["project"], "entity": {"id": "bWU=", "name": "me"}}
            bucket = bucket_of(given["name"], run) | {"project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}
        if name == "CreateRunFiles":
            url = f"{self.server.url}/upload/{given['run']}"
            files = [{"name": file, "uploadUrl": f"{url}/{file}"} for file in given["files"]]
            return {"createRunFiles": {"runID": "cnVu", "uploadHeaders": [], "files": files}}
        return {}

    def reply(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def bucket_of(ident, run):
    """A run as the server describes it."""
    return {
        "id": "cnVu",
        "name": ident,
        "displayName": run["name"],
        "config": run["config"],
        "historyLineCount": len(run["history"]),
    }


@contextmanager
def black_hole():
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def closed_port():
    """An address of this machine where nobody listens."""
    with black_hole() as url:
        return url
