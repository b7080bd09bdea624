// The product of few rows with filters as a layer stores them, (O, C): lanes run over the input channels, and nothing
// has to be packed before.
#pragma once

#include "cpu_common.h"

namespace drconv {

// A tile's accumulators, one vector of each of its filters and one of a row fit the registers.
constexpr int kDotRows = 4;
#if defined(CPU_CAPABILITY_AVX512)
constexpr int kDotFilters = 6;
#else
constexpr int kDotFilters = 3;
#endif

// sums[r][o] = sum over c of rows(r)[c] * filters[o * depth + c].
template <typename T, int R, int N>
C10_ALWAYS_INLINE void dot(const ScatteredRows<T, R>& rows, const T* filters, int64_t depth, T (&sums)[R][N]) {
  Vec<T> totals[R][N];
  c10::ForcedUnroll<R * N>{}([&](auto i) DRCONV_INLINE { totals[i / N][i % N] = Vec<T>(T(0)); });
  const auto add = [&](const auto& load) DRCONV_INLINE {
    Vec<T> right[N];
    c10::ForcedUnroll<N>{}([&](auto o) DRCONV_INLINE { right[o] = load(filters + o * depth); });
    c10::ForcedUnroll<R>{}([&](auto r) DRCONV_INLINE {
      const Vec<T> left = load(rows(r));
      c10::ForcedUnroll<N>{}([&](auto o) DRCONV_INLINE { totals[r][o] = at::vec::fmadd(left, right[o], totals[r][o]); });
    });
  };
  int64_t c = 0;
  for (; c + kLanes<T> <= depth; c += kLanes<T>) {
    add([&](const T* row) DRCONV_INLINE { return Vec<T>::loadu(row + c); });
  }
  if (c < depth) {
    add([&](const T* row) DRCONV_INLINE { return Vec<T>::loadu(row + c, depth - c); });
  }
  // Each total's lanes become a column, and the sum of the rows holds them all.
  constexpr int size = kLanes<T>, groups = (R * N + size - 1) / size;
  alignas(64) T lanes[groups * size][size], columns[size][size], results[groups * size];
  c10::ForcedUnroll<R * N>{}([&](auto i) DRCONV_INLINE { totals[i / N][i % N].store(lanes[i]); });
  for (int g = 0; g < groups; ++g) {
    at::vec::transpose_mxn<T, size, size>(lanes[g * size], size, columns[0], size);
    Vec<T> sum = Vec<T>::loadu(columns[0]);
    c10::ForcedUnroll<size - 1>{}([&](auto i) DRCONV_INLINE { sum = sum + Vec<T>::loadu(columns[i + 1]); });
    sum.store(results + g * size);
  }
  std::copy_n(results, R * N, sums[0]);
}

}  // namespace drconv
