#!/usr/bin/env python3
"""Plants includes in a small tree of its own and expects the wrong ones, and only those, to be caught."""

import pathlib
import tempfile
import unittest

import include_arrows


class IncludeArrowsTest(unittest.TestCase):
    def complaints(self, files):
        with tempfile.TemporaryDirectory() as directory:
            root = pathlib.Path(directory)
            for name, text in files.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(text)
            complaints, count = include_arrows.check_tree(root)
            self.assertEqual(count, len(files))
            return complaints

    def expect_one(self, files, *fragments):
        complaints = self.complaints(files)
        self.assertEqual(len(complaints), 1, complaints)
        for fragment in fragments:
            self.assertIn(fragment, complaints[0])

    def test_arrows_that_run_the_right_way(self):
        self.assertEqual([], self.complaints({
            "core/base/error.h": "#include <string>\n",
            "core/tensor/tensor.h": '#include "core/base/error.h"\n',
            "core/text/bpe.cc": '#include <pcre2.h>\n#include "core/base/error.h"\n',
            "core/runtime/session.cc": '#include "core/text/bpe.h"\n#include "core/tensor/tensor.h"\n',
            "core/text/bpe.h": "",
            "quant/tile.h": '#include "core/tensor/tensor.h"\n',
            "cpu/team.cc": '#include <hwloc.h>\n#include <omp.h>\n#include "quant/tile.h"\n',
            "gpu/stream.cc": "#include <cuda_runtime.h>\n",
            "storage/ring.cc": "#include <liburing.h>\n",
            "tools/main.cc": '#include <CLI/CLI.hpp>\n#include "cpu/team.h"\n',
            "cpu/team.h": "",
            "tests/cpu/team_test.cc": '#include <gtest/gtest.h>\n#include <dnnl.hpp>\n#include "cpu/team.h"\n',
        }))

    def test_core_includes_nothing_of_ours(self):
        self.expect_one({
            "core/runtime/runner.cc": '// line 1\n#include "cpu/team.h"\n',
            "cpu/team.h": "",
        }, "core/runtime/runner.cc:2:", "core may not include cpu")

    def test_siblings_do_not_know_each_other(self):
        self.expect_one({"cpu/a.cc": '#include "gpu/b.h"\n', "gpu/b.h": ""}, "cpu may not include gpu")
        self.expect_one({"prefetch/a.cc": '#include "quant/b.h"\n', "quant/b.h": ""},
                        "prefetch may not include quant")

    def test_nobody_includes_tools_or_tests(self):
        self.expect_one({"cpu/a.cc": '#include "tools/b.h"\n', "tools/b.h": ""}, "tools")
        self.expect_one({"tools/a.cc": '#include "tests/b.h"\n', "tests/b.h": ""}, "tests")

    def test_layers_of_core(self):
        self.expect_one({"core/model/a.h": '#include "core/interface/b.h"\n', "core/interface/b.h": ""},
                        "core/model may not include core/interface")
        self.expect_one({"core/text/a.h": '#include "core/runtime/b.h"\n', "core/runtime/b.h": ""},
                        "core/text may not include core/runtime")
        self.expect_one({"core/base/a.h": '#  include "core/tensor/b.h"\n', "core/tensor/b.h": ""},
                        "core/base may not include core/tensor")

    def test_unknown_layer_of_core(self):
        self.expect_one({"core/misc/a.h": ""}, "core/misc has no place")
        self.expect_one({"core/a.h": ""}, "core/ has no place")

    def test_libraries_stay_in_their_folder(self):
        self.expect_one({"cpu/a.cc": "#include <cuda_fp8.h>\n"}, "cuda_fp8.h", "gpu alone")
        self.expect_one({"tools/a.cc": "#include <cublasLt.h>\n"}, "gpu alone")
        self.expect_one({"tests/cpu/a.cc": "#include <cuda_runtime.h>\n"}, "gpu alone")
        self.expect_one({"core/base/a.cc": "#include <liburing.h>\n"}, "storage alone")
        self.expect_one({"gpu/a.cc": "#include <dnnl.hpp>\n"}, "cpu alone")
        self.expect_one({"prefetch/a.cc": "#include <hwloc.h>\n"}, "cpu and storage alone")
        self.expect_one({"core/model/a.cc": "#include <pcre2.h>\n"}, "core/text alone")
        self.expect_one({"quant/a.cc": "#include <gtest/gtest.h>\n"}, "tests alone")

    def test_cuda_sources_live_in_gpu(self):
        self.expect_one({"cpu/a.cu": ""}, "live in gpu")

    def test_ways_around(self):
        self.expect_one({"cpu/a.cc": '#include "../gpu/b.h"\n', "gpu/b.h": ""}, "climbs")
        self.expect_one({"cpu/a.cc": '#include "b.h"\n', "cpu/b.h": ""}, "relative")
        self.expect_one({"core/base/a.cc": "#include <cpu/b.h>\n", "cpu/b.h": ""}, "is ours")


if __name__ == "__main__":
    unittest.main()
