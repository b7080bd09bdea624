// Building blocks of the CPU kernels: pictures in either memory format, regions, and the register-blocked product.
//
// Letters: B batch, C in, O out, M regions, P pixels of one picture. A row is one pixel of the batch, n = b * P + p.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>
#include <c10/util/Unroll.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <type_traits>
#include <vector>

// For the lambdas of the inner loops: where one is not inlined, the accumulators it captures live in memory and the
// product runs at half its speed.
#define DRCONV_INLINE __attribute__((always_inline))

namespace drconv {

template <typename T>
using Vec = at::vec::Vectorized<T>;

template <typename T>
constexpr int64_t kLanes = Vec<T>::size();

// A tile of kRows x kVectors accumulators, one row of vectors and one broadcast fit the registers. Double precision is
// for checks: few tiles, so that the build stays short.
#if defined(CPU_CAPABILITY_AVX512)
template <typename T>
constexpr int kRows = sizeof(T) == 4 ? 8 : 4;
template <typename T>
constexpr int kVectors = sizeof(T) == 4 ? 3 : 1;
#else
template <typename T>
constexpr int kRows = sizeof(T) == 4 ? 6 : 4;
template <typename T>
constexpr int kVectors = sizeof(T) == 4 ? 2 : 1;
#endif

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

inline int64_t round_up(int64_t a, int64_t b) {
  return ceil_div(a, b) * b;
}

// Memory of one thread that lives until the thread ends, so that no call pays for page faults.
template <typename T, int Slot>
T* scratch(int64_t count) {
  static thread_local std::unique_ptr<T[]> memory;
  static thread_local int64_t capacity = 0;
  if (count > capacity) {
    memory.reset(new T[count]);
    capacity = count;
  }
  return memory.get();
}

// dst[n][m] = src[m][n].
template <typename T>
void transpose(const T* src, int64_t src_width, T* dst, int64_t dst_width, int64_t rows, int64_t columns) {
  constexpr int64_t size = kLanes<T>;
  for (int64_t i = 0; i < rows; i += size) {
    for (int64_t j = 0; j < columns; j += size) {
      const T* from = src + i * src_width + j;
      T* to = dst + j * dst_width + i;
      const int height = std::min(size, rows - i), width = std::min(size, columns - j);
      if (height == size && width == size) {
        at::vec::transpose_mxn<T, size, size>(from, src_width, to, dst_width);
      } else {
        at::vec::transpose_mxn<T>(from, src_width, to, dst_width, height, width);
      }
    }
  }
}

// A tensor (B, channels, H, W) in one of the two memory formats. Channels-last ones may be a slice of the channels of a
// larger tensor where only single rows are read: `row` elements lie between pixels, `step` between channels.
template <typename T>
struct Picture {
  T* data;
  int64_t channels;
  int64_t pixels;
  bool channels_last;
  int64_t row;
  int64_t step;

  // Calls f(picture, first pixel, offset from begin, number of pixels) for the part of each picture in [begin, end).
  template <typename F>
  void pieces(int64_t begin, int64_t end, const F& f) const {
    for (int64_t n = begin; n < end;) {
      const int64_t image = n / pixels, first = n % pixels, count = std::min(pixels - first, end - n);
      f(image, first, n - begin, count);
      n += count;
    }
  }

  T* plane(int64_t image, int64_t channel, int64_t pixel) const {
    return data + (image * channels + channel) * pixels + pixel;
  }

  // dst[row][channel]
  void load_rows(int64_t begin, int64_t end, std::remove_const_t<T>* dst) const {
    for (int64_t n = begin; channels_last && n < end; ++n, dst += channels) {
      for (int64_t c = 0; c < channels; ++c) {
        dst[c] = data[n * row + c * step];
      }
    }
    if (channels_last) {
      return;
    }
    pieces(begin, end, [&](int64_t image, int64_t first, int64_t offset, int64_t count) {
      transpose<std::remove_const_t<T>>(
          plane(image, 0, first), pixels, dst + offset * channels, channels, channels, count);
    });
  }

  // dst[channel][row]
  void load_lanes(int64_t begin, int64_t end, std::remove_const_t<T>* dst, int64_t width) const {
    if (channels_last) {
      transpose<std::remove_const_t<T>>(data + begin * channels, channels, dst, width, end - begin, channels);
      return;
    }
    pieces(begin, end, [&](int64_t image, int64_t first, int64_t offset, int64_t count) {
      for (int64_t c = 0; c < channels; ++c) {
        std::memcpy(dst + c * width + offset, plane(image, c, first), count * sizeof(T));
      }
    });
  }

  // From src[row][channel - channel0], for pictures that are not channels-last.
  void store_rows(const T* src, int64_t width, int64_t begin, int64_t end, int64_t channel0, int64_t count0) const {
    pieces(begin, end, [&](int64_t image, int64_t first, int64_t offset, int64_t count) {
      transpose<T>(src + offset * width, width, plane(image, channel0, first), pixels, count, count0);
    });
  }

  // From src[channel][row].
  void store_lanes(const T* src, int64_t width, int64_t begin, int64_t end) const {
    if (channels_last) {
      transpose<T>(src, width, data + begin * channels, channels, channels, end - begin);
      return;
    }
    pieces(begin, end, [&](int64_t image, int64_t first, int64_t offset, int64_t count) {
      for (int64_t c = 0; c < channels; ++c) {
        std::memcpy(plane(image, c, first), src + c * width + offset, count * sizeof(T));
      }
    });
  }
};

// The region of every row: the first maximum over logits[region][row] (Eq. 3), NaN above all numbers as torch has it.
template <typename T>
void argmax(const T* logits, int64_t width, int64_t regions, int64_t rows, int32_t* mask) {
  T found[kLanes<T>];
  for (int64_t i = 0; i < rows; i += kLanes<T>) {
    const int64_t count = std::min(kLanes<T>, rows - i);
    Vec<T> best = Vec<T>::loadu(logits + i, count), index(0);
    for (int64_t r = 1; r < regions; ++r) {
      const Vec<T> value = Vec<T>::loadu(logits + r * width + i, count);
      const Vec<T> larger = (value > best) | ((value != value) & (best == best));
      best = Vec<T>::blendv(best, value, larger);
      index = Vec<T>::blendv(index, Vec<T>(static_cast<T>(r)), larger);
    }
    index.store(found);
    for (int64_t lane = 0; lane < count; ++lane) {
      mask[i + lane] = static_cast<int32_t>(found[lane]);
    }
  }
}

// Rows [begin, end) grouped by region; `order` holds offsets from begin, `scale` the factor of each ordered row.
template <typename T>
struct Regions {
  std::vector<int64_t> start;
  int32_t* order;
  T* scale;

  Regions(const Picture<const T>& logits, const T* scales, int64_t begin, int64_t end)
      : start(logits.channels + 1, 0) {
    const int64_t rows = end - begin, regions = logits.channels;
    int32_t* mask = scratch<int32_t, 0>(2 * rows + kRows<T>);  // the product looks a tile ahead
    order = mask + rows;
    std::fill_n(order + rows, kRows<T>, 0);
    T* lanes = scratch<T, 0>((regions + 1) * rows);
    scale = lanes + regions * rows;
    if (!logits.data) {  // one region: a standard convolution
      start[1] = rows;
      std::iota(order, order + rows, 0);
      std::fill_n(scale, rows, T(1));
      return;
    }
    logits.load_lanes(begin, end, lanes, rows);
    argmax(lanes, rows, regions, rows, mask);
    for (int64_t i = 0; i < rows; ++i) {
      ++start[mask[i] + 1];
    }
    for (int64_t r = 0; r < regions; ++r) {
      start[r + 1] += start[r];
    }
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    logits.pieces(begin, end, [&](int64_t image, int64_t, int64_t offset, int64_t count) {
      for (int64_t i = offset; i < offset + count; ++i) {
        const int64_t place = next[mask[i]]++;
        order[place] = static_cast<int32_t>(i);
        scale[place] = scales ? scales[image * regions + mask[i]] : T(1);
      }
    });
  }
};

// Row r of the left factor of a product, either anywhere or beside its neighbour.
template <typename T, int R>
struct ScatteredRows {
  const T* rows[R];
  const T* operator()(int r) const {
    return rows[r];
  }
};

template <typename T>
struct AdjacentRows {
  const T* first;
  const T* operator()(int r) const {
    return first + r;
  }
};

// sums[r][v] = sum over k of rows(r)[k * step] * panel[k * width + v * lanes ...]: the inner loop of every kernel here.
template <typename T, int R, int V, typename Rows>
C10_ALWAYS_INLINE void multiply(
    const Rows& rows, int64_t step, const T* panel, int64_t width, int64_t depth, Vec<T> (&sums)[R][V]) {
  c10::ForcedUnroll<R * V>{}([&](auto i) DRCONV_INLINE { sums[i / V][i % V] = Vec<T>(T(0)); });
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> right[V];
    c10::ForcedUnroll<V>{}([&](auto v) DRCONV_INLINE { right[v] = Vec<T>::loadu(panel + k * width + v * kLanes<T>); });
    c10::ForcedUnroll<R>{}([&](auto r) DRCONV_INLINE {
      const Vec<T> left(rows(r)[k * step]);
      c10::ForcedUnroll<V>{}([&](auto v) DRCONV_INLINE { sums[r][v] = at::vec::fmadd(left, right[v], sums[r][v]); });
    });
  }
}

// Calls f with `value` in 1 .. Max as a compile-time constant.
template <int Max, typename F>
C10_ALWAYS_INLINE void with_constant(int64_t value, const F& f) {
  if constexpr (Max > 1) {
    if (value < Max) {
      with_constant<Max - 1>(value, f);
      return;
    }
  }
  f(std::integral_constant<int, Max>{});
}

// Calls f(first, rows) for tiles that cover `count` rows, of Max rows and then of 4, 2 and 1, so that few are compiled.
template <int Max, typename F>
C10_ALWAYS_INLINE void in_tiles(int64_t count, const F& f) {
  int64_t first = 0;
  for (; first + Max <= count; first += Max) {
    f(first, std::integral_constant<int, Max>{});
  }
  if (Max > 4 && first + 4 <= count) {
    f(first, std::integral_constant<int, 4>{});
    first += 4;
  }
  if (Max > 2 && first + 2 <= count) {
    f(first, std::integral_constant<int, 2>{});
    first += 2;
  }
  if (first < count) {
    f(first, std::integral_constant<int, 1>{});
  }
}

}  // namespace drconv
