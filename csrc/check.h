// Errors for the caller: TD_CHECK(condition, parts of a message...) throws what PyTorch hands on to Python.
//
// PyTorch's own macro would say where in our sources, which is of no use to a caller; and it writes numbers to a
// stream, which ends the process where the compiler links libstdc++ into the extension and the process has another one.
#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>

namespace taylorderiv {

template <class Part>
std::string text_of(const Part& part) {
  if constexpr (std::is_arithmetic_v<Part>) {
    return std::to_string(part);
  } else {
    return part;
  }
}

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw std::runtime_error((std::string("taylorderiv: ") + ... + text_of(parts)));
}

}  // namespace taylorderiv

#define TD_CHECK(condition, ...) ((condition) ? void() : ::taylorderiv::fail(__VA_ARGS__))
