#!/usr/bin/env python3
"""Writes a checkpoint of random weights at a model's full width, fast. Standard library only.

    benchmarks/weights/make_checkpoint.py --config configs/models/deepseek_v3.json --layers 5 --out /dev/shm/dsv3

The first LAYERS layers (FP8 with block scales, norms and gates in BF16), embedding and head, in shards of 2 GiB
so that all threads have one. The numbers are finite but mean nothing: this is for measuring how fast weights load."""

import argparse
import array
import concurrent.futures
import json
import os
import random
import shutil
import struct
import time

BLOCK = 1 << 26
SHARD_BYTES = 2 << 30


def random_blocks():
    """A block of bytes for each dtype; tensors are cut out of them at changing offsets."""
    pick = random.Random(1)
    # e4m3 without its second highest bit: below 2 in size, never NaN.
    fp8 = pick.randbytes(BLOCK).translate(bytes(value & 0xBF for value in range(256)))
    normal = array.array("f", (pick.gauss(0, 0.02) for _ in range(1 << 18))).tobytes()
    bf16 = bytearray(len(normal) // 2)
    bf16[0::2], bf16[1::2] = normal[2::4], normal[3::4]
    one = struct.pack("<H", 0x3F80) * (1 << 16)
    scale = array.array("f", (pick.uniform(0.005, 0.02) for _ in range(1 << 16))).tobytes()
    return {"F8_E4M3": fp8, "BF16": bytes(bf16) * (BLOCK // len(bf16)), "ONE": one, "F32": scale, "ZERO": bytes(1 << 16)}


def matrix(name, rows, cols):
    return [(name + ".weight", "F8_E4M3", [rows, cols], "F8_E4M3"),
            (name + ".weight_scale_inv", "F32", [-(-rows // 128), -(-cols // 128)], "F32")]


def layer_tensors(c, layer):
    prefix = f"model.layers.{layer}."
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    nope, rope, value, q_rank, kv_rank = (c[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "q_lora_rank", "kv_lora_rank"))
    attention = prefix + "self_attn."
    out = [(prefix + "input_layernorm.weight", "BF16", [hidden], "ONE"), (prefix + "post_attention_layernorm.weight", "BF16", [hidden], "ONE"),
           (attention + "q_a_layernorm.weight", "BF16", [q_rank], "ONE"), (attention + "kv_a_layernorm.weight", "BF16", [kv_rank], "ONE")]
    out += matrix(attention + "q_a_proj", q_rank, hidden)
    out += matrix(attention + "q_b_proj", heads * (nope + rope), q_rank)
    out += matrix(attention + "kv_a_proj_with_mqa", kv_rank + rope, hidden)
    out += matrix(attention + "kv_b_proj", heads * (nope + value), kv_rank)
    out += matrix(attention + "o_proj", hidden, heads * value)

    def mlp(name, width):
        return matrix(name + ".gate_proj", width, hidden) + matrix(name + ".up_proj", width, hidden) + matrix(name + ".down_proj", hidden, width)

    if layer < c["first_k_dense_replace"]:
        return out + mlp(prefix + "mlp", c["intermediate_size"])
    width = c["moe_intermediate_size"]
    out += [(prefix + "mlp.gate.weight", "BF16", [c["n_routed_experts"], hidden], "BF16"),
            (prefix + "mlp.gate.e_score_correction_bias", "F32", [c["n_routed_experts"]], "ZERO")]
    out += mlp(prefix + "mlp.shared_experts", width * c["n_shared_experts"])
    for expert in range(c["n_routed_experts"]):
        out += mlp(f"{prefix}mlp.experts.{expert}", width)
    return out


def size(tensor):
    count = {"F8_E4M3": 1, "BF16": 2, "F32": 4}[tensor[1]]
    for dim in tensor[2]:
        count *= dim
    return count


def shards_of(tensors):
    shards, room = [], 0
    for tensor in tensors:
        if room < size(tensor) or not shards:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(tensor)
        room -= size(tensor)
    return shards


def write_shard(path, tensors, blocks, seed):
    header, end = {}, 0
    for tensor in tensors:
        name, dtype, shape, _ = tensor
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size(tensor)]}
        end += size(tensor)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pick = random.Random(seed)
    with open(path, "wb", buffering=0) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            block, left = memoryview(blocks[tensor[3]]), size(tensor)
            while left:
                begin = pick.randrange(0, len(block) // 2, 8)
                left -= file.write(block[begin:begin + left])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="config.json of the model")
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--tokenizer", help="folder whose tokenizer*.json are copied along")
    parser.add_argument("--out", required=True, help="new folder")
    parser.add_argument("--threads", type=int, default=min(16, os.cpu_count() or 1))
    args = parser.parse_args()
    with open(args.config) as file:
        config = json.load(file)
    config["num_hidden_layers"] = min(args.layers, config["num_hidden_layers"])
    config["num_nextn_predict_layers"] = 0
    config["first_k_dense_replace"] = min(config["first_k_dense_replace"], config["num_hidden_layers"])

    vocab, hidden = config["vocab_size"], config["hidden_size"]
    tensors = [("model.embed_tokens.weight", "BF16", [vocab, hidden], "BF16")]
    for layer in range(config["num_hidden_layers"]):
        tensors += layer_tensors(config, layer)
    tensors += [("model.norm.weight", "BF16", [hidden], "ONE"), ("lm_head.weight", "BF16", [vocab, hidden], "BF16")]
    total = sum(size(tensor) for tensor in tensors)
    os.makedirs(args.out)
    if shutil.disk_usage(args.out).free < total * 1.05:
        raise SystemExit(f"{args.out}: no room for {total / 1e9:.1f} GB")

    start = time.monotonic()
    blocks, shards, weight_map = random_blocks(), shards_of(tensors), {}
    with concurrent.futures.ThreadPoolExecutor(args.threads) as pool:
        jobs = []
        for i, shard in enumerate(shards):
            name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
            weight_map.update({tensor[0]: name for tensor in shard})
            jobs.append(pool.submit(write_shard, os.path.join(args.out, name), shard, blocks, i))
        for job in jobs:
            job.result()
    with open(os.path.join(args.out, "model.safetensors.index.json"), "w") as file:
        json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, file)
    with open(os.path.join(args.out, "config.json"), "w") as file:
        json.dump(config, file, indent=1)
    if args.tokenizer:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(os.path.join(args.tokenizer, name), args.out)
    seconds = time.monotonic() - start
    print(json.dumps({"bytes": total, "shards": len(shards), "seconds": round(seconds, 1), "gb_per_s": round(total / seconds / 1e9, 2)}))


if __name__ == "__main__":
    main()
