// Filters packed for the product.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "cpu_forward.h"

namespace drconv {

// [region][panel][in][width]. The sizes say all about the order, so that filters packed on another processor are seen.
template <typename T>
std::vector<int64_t> packed_sizes(const Panels<T>& panels) {
  return {panels.regions, panels.panels(), panels.inputs, panels.width()};
}

template <typename T>
at::Tensor pack(const at::Tensor& weight, const Panels<T>& panels, bool transposed) {
  at::Tensor packed = at::empty(packed_sizes(panels), weight.options());
  T* dst = packed.mutable_data_ptr<T>();
  const T* src = weight.const_data_ptr<T>();
  at::parallel_for(0, panels.regions * panels.panels(), 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t region = i / panels.panels();
      panels.pack(src + region * panels.outputs * panels.inputs, transposed, i % panels.panels(),
                  dst + i * panels.panel_size());
    }
  });
  return packed;
}

// `packed` where it is what `pack` would give for these panels, else the filters packed for this call.
template <typename T>
at::Tensor packed_or_pack(const std::optional<at::Tensor>& packed, const at::Tensor& weight, const Panels<T>& panels,
                          bool transposed) {
  const bool fits = packed && packed->scalar_type() == weight.scalar_type() && packed->device().is_cpu() &&
      packed->is_contiguous() && packed->sizes() == c10::IntArrayRef(packed_sizes(panels));
  return fits ? *packed : pack<T>(weight, panels, transposed);
}

}  // namespace drconv
