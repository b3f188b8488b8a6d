// sslops._C: importing it registers the CPU kernels; what is not an op is a function here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "isa/isa.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled CPU kernels of sslops.";
  m.def(
      "level", [] { return sslops::isa_name(sslops::isa()); },
      "The instruction-set level in use: portable, avx2, avx512 or amx.");
  m.def("levels", &sslops::isas, "The levels that this machine can run, slowest first.");
  m.def("set_level", &sslops::set_isa, py::arg("name"),
        "Force a level for the whole process, or \"auto\"; ValueError if it cannot run here.");
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["compiler"] = __VERSION__;
        info["cplusplus"] = static_cast<long>(__cplusplus);
#ifdef _OPENMP
        info["openmp"] = static_cast<long>(_OPENMP);
#else
        info["openmp"] = 0L;
#endif
        return info;
      },
      "Compiler and standard that this module was built with.");
}
