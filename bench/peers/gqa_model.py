"""Writes an ONNX model of causal attention for bench/peers/ort.mjs: `gqa_model.py OUT HEADS HEAD_DIM NODES`.

NODES GroupQueryAttention operators in a row, each with the output of the one before as its query and all with the
same keys and values (f16, [1, N, HEADS * HEAD_DIM]). The time of one operator is the difference between two models
divided by the difference of their NODES, which leaves out what a run costs besides attention, such as copies.
"""

import sys

import onnx
from onnx import TensorProto, helper


def gqa_model(heads: int, head_dim: int, nodes: int) -> onnx.ModelProto:
    def tensor(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, "n", heads * head_dim])

    operators = [
        helper.make_node(
            "GroupQueryAttention",
            [f"x{i}", "k", "v", "past_k", "past_v", "last", "total"],
            [f"x{i + 1}", f"present_k{i}", f"present_v{i}"],
            domain="com.microsoft",
            num_heads=heads,
            kv_num_heads=heads,
        )
        for i in range(nodes)
    ]
    empty = [
        helper.make_tensor(name, TensorProto.FLOAT16, [1, heads, 0, head_dim], b"", raw=True) for name in ("past_k", "past_v")
    ]
    # Index of the last key, and the number of keys.
    lengths = [
        helper.make_tensor_value_info("last", TensorProto.INT32, [1]),
        helper.make_tensor_value_info("total", TensorProto.INT32, [1]),
    ]
    graph = helper.make_graph(
        operators, "attention", [tensor("x0"), tensor("k"), tensor("v"), *lengths], [tensor(f"x{nodes}")], empty
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


if __name__ == "__main__":
    out, *numbers = sys.argv[1:]
    onnx.save(gqa_model(*map(int, numbers)), out)
