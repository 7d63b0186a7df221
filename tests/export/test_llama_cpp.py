"""llama.cpp itself reads what was written: it cuts text as the tokenizer does and has the same first choices.

Run where the environment variable NODE_LLAMA_CPP names a folder in which `npm install --ignore-scripts
node-llama-cpp` was run: that package brings llama.cpp as a library that needs no compiler.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from collegium.export.formats import FORMATS
from tests.support.small_students import LINES_TEXT


FOLDER = os.environ.get("NODE_LLAMA_CPP", "")
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(
    not FOLDER or NODE is None, reason="needs node, and NODE_LLAMA_CPP: a folder with node-llama-cpp"
)

SCRIPT = """
import {getLlama} from "node-llama-cpp";
import fs from "fs";
const [file, texts] = [process.argv[2], JSON.parse(fs.readFileSync(0))];
const llama = await getLlama({gpu: false, build: "never"});
const model = await llama.loadModel({modelPath: file});
const sequence = (await model.createContext({contextSize: 128, threads: 1})).getSequence();
const answers = [];
for (const text of texts) {
  const ids = model.tokenize(text).slice(0, 64);
  await sequence.clearHistory();
  const asked = ids.map(id => [id, {generateNext: {token: true, options: {temperature: 0}}}]);
  answers.push([ids, (await sequence.controlledEvaluate(asked)).map(answer => answer.next.token)]);
}
console.log(JSON.stringify(answers));
process.exit(0);
"""
STRANGE = ["it's 12345 naïve\u2019 tests", "  two  spaces\n\n\nand\ttabs ", "日本語 και ελληνικά 🙂🙂", "a" * 50]


@pytest.fixture(scope="module")
def answers(student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    FORMATS["gguf"].write(student, folder)
    script = Path(FOLDER) / "read_gguf.mjs"  # beside node_modules, where imports are looked for
    script.write_text(SCRIPT, encoding="utf-8")
    texts = [*LINES_TEXT, *STRANGE]
    asked = [str(NODE), str(script), str(folder / "model.gguf")]
    done = subprocess.run(asked, input=json.dumps(texts), capture_output=True, text=True, check=True, timeout=120)
    return texts, json.loads(done.stdout.splitlines()[-1])


def test_text_is_cut_alike(student, answers):
    for text, (ids, _) in zip(*answers, strict=True):
        assert ids == student.tokenizer(text)["input_ids"][:64], text


@torch.no_grad()
def test_first_choices_are_the_same(student, answers):
    same = []
    for _, (ids, chosen) in zip(*answers, strict=True):
        logits = student.model(torch.tensor([ids])).logits[0]
        same += [a == b for a, b in zip(logits.argmax(-1).tolist(), chosen, strict=True)]
    assert len(same) > 150 and sum(same) / len(same) >= 0.99
