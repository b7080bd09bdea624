// Filters packed for the product, and whether to pack them at all.
#pragma once

#include <ATen/core/Tensor.h>

#include "cpu_forward.h"

namespace drconv {

// How the product gets at filters that nobody has packed: all packed before, a panel at a time on the way, or as stored.
enum class Source { packed, panels, stored };

// Packing reads and writes the filters of all regions, which a few rows do not pay for. Measured at batch 1: from M C of
// 10 rows on reading them as stored is the fastest (each output adds up its lanes there), from M C of a row on packing a
// panel at a time (which stays in the cache, and leaves out regions without a pixel).
inline Source choose_source(int64_t batch, int64_t rows, int64_t regions, int64_t inputs, bool transposed) {
  if (rows * 10 < regions * inputs && !transposed) {
    return Source::stored;
  }
  return batch == 1 && rows < regions * inputs ? Source::panels : Source::packed;
}

// [region][panel][in][width]. The sizes say all about the order, so that filters packed on another processor are seen.
template <typename T>
std::vector<int64_t> packed_sizes(const Panels<T>& panels) {
  return {panels.regions, panels.panels(), panels.inputs, panels.width()};
}

// Into memory of `panels.size()`.
template <typename T>
void pack(const T* weight, const Panels<T>& panels, bool transposed, T* packed) {
  at::parallel_for(0, panels.regions * panels.panels(), 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t region = i / panels.panels();
      panels.pack(weight + region * panels.outputs * panels.inputs, transposed, i % panels.panels(),
                  packed + i * panels.panel_size());
    }
  });
}

// Whether `packed` is what `pack` gives for these filters and panels.
template <typename T>
bool is_packed(const std::optional<at::Tensor>& packed, const at::Tensor& weight, const Panels<T>& panels) {
  return packed && packed->scalar_type() == weight.scalar_type() && packed->device().is_cpu() &&
      packed->is_contiguous() && packed->sizes() == c10::IntArrayRef(packed_sizes(panels));
}

}  // namespace drconv
