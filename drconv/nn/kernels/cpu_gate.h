// The generator of a DRConv whose filters factor: a scale per picture and region from the average of the pixels.
#pragma once

#include <ATen/cpu/vec/functional.h>

#include <cmath>

#include "cpu_common.h"

namespace drconv {

// Sum of rows, in blocks of vectors that stay in registers.
template <typename T>
void sum_rows(const T* data, int64_t stride, int64_t rows, int64_t width, T* sums) {
  constexpr int64_t block = 4;
  for (int64_t c = 0; c < width; c += block * kLanes<T>) {
    with_constant<block>(std::min(block, ceil_div(width - c, kLanes<T>)), [&](auto vectors) {
      Vec<T> total[vectors.value];
      const int64_t last = std::min(kLanes<T>, width - c - (vectors - 1) * kLanes<T>);
      c10::ForcedUnroll<vectors.value>{}([&](auto v) DRCONV_INLINE { total[v] = Vec<T>(T(0)); });
      for (int64_t i = 0; i < rows; ++i) {
        const T* row = data + i * stride + c;
        c10::ForcedUnroll<vectors.value>{}([&](auto v) DRCONV_INLINE {
          constexpr bool is_last = v == vectors.value - 1;
          total[v] = total[v] + Vec<T>::loadu(row + v * kLanes<T>, is_last ? last : kLanes<T>);
        });
      }
      c10::ForcedUnroll<vectors.value>{}([&](auto v) DRCONV_INLINE {
        total[v].store(sums + c + v * kLanes<T>, v == vectors - 1 ? last : kLanes<T>);
      });
    });
  }
}

template <typename T>
T sum_plane(const T* data, int64_t count) {
  Vec<T> total(T(0));
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    total = total + Vec<T>::loadu(data + i, std::min(kLanes<T>, count - i));
  }
  return at::vec::vec_reduce_all<T>([](Vec<T>& a, Vec<T>& b) { return a + b; }, total);
}

// result[m] = peak * sigmoid(bias[m] + sum over c of weight[m][c] * mean of x[image][c]).
template <typename T>
void gate_of_image(
    const Picture<const T>& x, int64_t image, const T* weight, const T* bias, int64_t units, T peak, T* result) {
  const int64_t step = x.channels_last ? x.step : 1, width = (x.channels - 1) * step + 1;
  T* sums = scratch<T, 1>(width);
  if (x.channels_last) {
    sum_rows(x.data + image * x.pixels * x.row, x.row, x.pixels, width, sums);
  } else {
    for (int64_t c = 0; c < x.channels; ++c) {
      sums[c] = sum_plane(x.plane(image, c, 0), x.pixels);
    }
  }
  for (int64_t c = 0; c < x.channels; ++c) {
    sums[c] = sums[c * step] / x.pixels;
  }
  for (int64_t m = 0; m < units; ++m) {
    const T sum = at::vec::map2_reduce_all<T>(
        [](Vec<T> a, Vec<T> b) { return a * b; }, [](Vec<T> a, Vec<T> b) { return a + b; }, weight + m * x.channels, sums,
        x.channels);
    result[m] = peak / (1 + std::exp(-(bias[m] + sum)));
  }
}

}  // namespace drconv
