// Backward: one pass over all regions gives the gradients of the guide, the scale and the input (Eq. 7 and 8); a
// second one, over each region's own pixels, that of the filters.
#pragma once

#include "cpu_common.h"

namespace drconv {

// For every pixel and every region j: h = V_j^T g, of which <h, x> is the guide's gradient before the softmax, and
// s_j h of the pixel's own region the input's gradient. Pixels are the vector lanes, so nothing is summed across lanes
// and no pixel moves.
template <typename T>
struct GuideBackward {
  Picture<const T> grad, x, logits;
  const T* filters;  // (B or 1, M, O, C)
  bool per_image;
  const T* scale;  // (B, M) or null
  Picture<T> grad_x, grad_logits;
  T* grad_scale;  // (threads, B, M) or null
  int64_t batch;

  int64_t tile_rows() const {
    const int64_t filter_bytes = logits.channels * grad.channels * x.channels * sizeof(T);
    const int64_t row_bytes = (grad.channels + 2 * x.channels) * sizeof(T);
    const int64_t cache = filter_bytes > (1 << 20) ? 512 << 10 : 40 << 10;  // many filters: read them less often
    const int64_t step = kVectors<T> * kLanes<T>;
    return std::clamp<int64_t>(cache / row_bytes / step, 1, 8) * step;
  }

  // dots[lane] += <h, x>, grad_x += coefficient * h for channels [channel, channel + R) and V vectors of pixels.
  template <int R, int V>
  static void tile(const T* filter, int64_t inputs, int64_t outputs, int64_t channel, const T* grad, const T* x,
                   T* grad_x, T* dots, const T* coefficient, int64_t width) {
    Vec<T> sums[R][V];
    multiply<T, R, V>(AdjacentRows<T>{filter + channel}, inputs, grad, width, outputs, sums);
    c10::ForcedUnroll<V>{}([&](auto v) DRCONV_INLINE {
      const int64_t lane = v * kLanes<T>;
      Vec<T> dot = Vec<T>::loadu(dots + lane);
      const Vec<T> factor = Vec<T>::loadu(coefficient + lane);
      c10::ForcedUnroll<R>{}([&](auto r) DRCONV_INLINE {
        const int64_t place = (channel + r) * width + lane;
        dot = at::vec::fmadd(sums[r][v], Vec<T>::loadu(x + place), dot);
        at::vec::fmadd(sums[r][v], factor, Vec<T>::loadu(grad_x + place)).store(grad_x + place);
      });
      dot.store(dots + lane);
    });
  }

  // From dots <h_j, x> to the gradient of the logits, in place of the logits.
  static void softmax_backward(T* logits, const T* dots, const T* scales, int64_t regions, int64_t width) {
    for (int64_t i = 0; i < width; i += kLanes<T>) {
      Vec<T> largest = Vec<T>::loadu(logits + i), total(T(0)), mean(T(0));
      for (int64_t r = 1; r < regions; ++r) {
        largest = at::vec::maximum(largest, Vec<T>::loadu(logits + r * width + i));
      }
      for (int64_t r = 0; r < regions; ++r) {
        const int64_t place = r * width + i;
        const Vec<T> weight = (Vec<T>::loadu(logits + place) - largest).exp();
        weight.store(logits + place);
        total = total + weight;
        mean = at::vec::fmadd(weight, Vec<T>::loadu(dots + place) * Vec<T>::loadu(scales + place), mean);
      }
      mean = mean / total;
      for (int64_t r = 0; r < regions; ++r) {
        const int64_t place = r * width + i;
        const Vec<T> value = Vec<T>::loadu(dots + place) * Vec<T>::loadu(scales + place);
        (Vec<T>::loadu(logits + place) / total * (value - mean)).store(logits + place);
      }
    }
  }

  void unit(int64_t begin, int64_t end) const {
    const int64_t regions = logits.channels, inputs = x.channels, outputs = grad.channels, rows = end - begin;
    const int64_t width = round_up(rows, kLanes<T>);
    T* memory = scratch<T, 1>((outputs + 2 * inputs + 4 * regions) * width);
    T *grad_tile = memory, *x_tile = grad_tile + outputs * width, *grad_x_tile = x_tile + inputs * width;
    T *logit_tile = grad_x_tile + inputs * width, *dots = logit_tile + regions * width;
    T *scales = dots + regions * width, *coefficient = scales + regions * width;
    std::fill_n(memory, (outputs + 2 * inputs + 4 * regions) * width, T(0));
    grad.load_lanes(begin, end, grad_tile, width);
    x.load_lanes(begin, end, x_tile, width);
    logits.load_lanes(begin, end, logit_tile, width);
    int32_t* mask = scratch<int32_t, 0>(width);
    argmax(logit_tile, width, regions, rows, mask);
    logits.pieces(begin, end, [&](int64_t image, int64_t, int64_t offset, int64_t count) {
      for (int64_t r = 0; r < regions; ++r) {
        std::fill_n(scales + r * width + offset, count, scale ? scale[image * regions + r] : T(1));
      }
    });
    for (int64_t i = 0; i < rows; ++i) {
      coefficient[mask[i] * width + i] = scales[mask[i] * width + i];
    }
    const T* filter = filters + (per_image ? begin / x.pixels : 0) * regions * outputs * inputs;
    for (int64_t r = 0; r < regions; ++r) {
      products(filter + r * outputs * inputs, grad_tile, x_tile, grad_x_tile, dots + r * width, coefficient + r * width,
               width);
    }
    if (grad_scale) {
      T* sums = grad_scale + at::get_thread_num() * batch * regions;
      logits.pieces(begin, end, [&](int64_t image, int64_t, int64_t offset, int64_t count) {
        for (int64_t i = offset; i < offset + count; ++i) {
          sums[image * regions + mask[i]] += dots[mask[i] * width + i];
        }
      });
    }
    softmax_backward(logit_tile, dots, scales, regions, width);
    grad_x.store_lanes(grad_x_tile, width, begin, end);
    grad_logits.store_lanes(logit_tile, width, begin, end);
  }

  void products(const T* filter, const T* grad_tile, const T* x_tile, T* grad_x_tile, T* dots, const T* coefficient,
                int64_t width) const {
    const int64_t inputs = x.channels, outputs = grad.channels;
    in_tiles<kRows<T>>(inputs, [&](int64_t c, auto channels) {
      for (int64_t i = 0; i < width; i += kVectors<T> * kLanes<T>) {
        with_constant<kVectors<T>>(std::min<int64_t>(kVectors<T>, (width - i) / kLanes<T>), [&](auto vectors) {
          tile<channels.value, vectors.value>(
              filter, inputs, outputs, c, grad_tile + i, x_tile + i, grad_x_tile + i, dots + i, coefficient + i, width);
        });
      }
    });
  }

  void run() const {
    const int64_t rows = batch * x.pixels, span = per_image ? x.pixels : rows;
    const int64_t size = std::min(tile_rows(), span), units = ceil_div(span, size);
    at::parallel_for(0, rows / span * units, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t origin = i / units * span, begin = origin + i % units * size;
        unit(begin, std::min(begin + size, origin + span));
      }
    });
  }
};

// grad V_r = sum over the pixels of region r of s g x^T.
template <typename T>
struct FilterBackward {
  Picture<const T> grad, x, logits;
  const T* scale;  // (B, M) or null
  int64_t batch;
  bool per_image;

  int64_t filter_size() const {
    return grad.channels * x.channels;
  }

  template <int R, int V>
  static void tile(const T* grad_rows, int64_t grad_width, const T* x_rows, int64_t x_width, int64_t count, T* result,
                   int64_t inputs, int64_t left) {
    Vec<T> sums[R][V];
    multiply<T, R, V>(AdjacentRows<T>{grad_rows}, grad_width, x_rows, x_width, count, sums);
    c10::ForcedUnroll<R * V>{}([&](auto i) DRCONV_INLINE {
      constexpr int r = i / V, v = i % V;
      const int64_t lanes = std::min(kLanes<T>, left - v * kLanes<T>);
      if (lanes > 0) {
        T* place = result + r * inputs + v * kLanes<T>;
        (Vec<T>::loadu(place, lanes) + sums[r][v]).store(place, lanes);
      }
    });
  }

  // Copies rows in their order, times a factor each, padded with zeros to `width`; channels [first, first + count).
  static void gather(const Picture<const T>& from, int64_t begin, int64_t end, const int32_t* order, const T* factor,
                     int64_t first, int64_t count, int64_t width, T* dst) {
    const T* source = from.data + begin * from.channels;
    if (!from.channels_last) {
      T* rows = scratch<T, 3>((end - begin) * from.channels);
      from.load_rows(begin, end, rows);
      source = rows;
    }
    for (int64_t i = 0; i < end - begin; ++i, dst += width) {
      const T* row = source + order[i] * from.channels + first;
      const Vec<T> times(factor ? factor[i] : T(1));
      for (int64_t c = 0; c < count; c += kLanes<T>) {
        const int64_t lanes = std::min(kLanes<T>, count - c);
        (Vec<T>::loadu(row + c, lanes) * times).store(dst + c, lanes);
      }
      std::fill(dst + count, dst + width, T(0));
    }
  }

  // Adds the gradient of rows [begin, end) for output channels [first, last) to `result` (M, O, C).
  void unit(int64_t begin, int64_t end, int64_t first, int64_t last, T* result) const {
    const Regions<T> regions(logits, scale, begin, end);
    const int64_t inputs = x.channels, outputs = last - first;
    const int64_t x_width = round_up(inputs, kLanes<T>), grad_width = round_up(outputs, kLanes<T>);
    T* grad_rows = scratch<T, 1>((end - begin) * grad_width);
    T* x_rows = scratch<T, 2>((end - begin) * x_width);
    gather(grad, begin, end, regions.order, regions.scale, first, outputs, grad_width, grad_rows);
    gather(x, begin, end, regions.order, nullptr, 0, inputs, x_width, x_rows);
    for (int64_t r = 0; r < logits.channels; ++r) {
      const int64_t start = regions.start[r], count = regions.start[r + 1] - start;
      if (count > 0) {
        products(grad_rows + start * grad_width, grad_width, outputs, x_rows + start * x_width, x_width, count,
                 result + r * filter_size() + first * inputs);
      }
    }
  }

  void products(const T* grad_rows, int64_t grad_width, int64_t outputs, const T* x_rows, int64_t x_width,
                int64_t count, T* result) const {
    const int64_t inputs = x.channels;
    for (int64_t c = 0; c < x_width; c += kVectors<T> * kLanes<T>) {
      with_constant<kVectors<T>>(std::min<int64_t>(kVectors<T>, (x_width - c) / kLanes<T>), [&](auto vectors) {
        in_tiles<kRows<T>>(outputs, [&](int64_t o, auto rows) {
          tile<rows.value, vectors.value>(grad_rows + o, grad_width, x_rows + c, x_width, count,
                                          result + o * inputs + c, inputs, inputs - c);
        });
      });
    }
  }

  // `results` holds one gradient per picture when each has its own filters, else one per row worker, to be summed.
  int64_t row_workers() const {
    const int64_t threads = at::get_num_threads();
    return per_image ? batch : logits.channels * grad.channels > batch * x.pixels ? 1 : threads;
  }

  void run(T* results) const {
    const int64_t workers = row_workers(), rows = batch * x.pixels, span = ceil_div(rows, workers);
    const int64_t groups = workers == 1 || (per_image && batch < at::get_num_threads())
        ? std::min<int64_t>(at::get_num_threads(), ceil_div(grad.channels, kRows<T>))
        : 1;
    const int64_t row_bytes = (grad.channels + x.channels) * sizeof(T);
    const int64_t size = std::max<int64_t>(256, (768 << 10) / row_bytes);
    const int64_t slice = round_up(ceil_div(grad.channels, groups), kRows<T>);
    at::parallel_for(0, workers * groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t worker = i / groups, first = i % groups * slice;
        const int64_t last = std::min(first + slice, grad.channels), limit = std::min(rows, (worker + 1) * span);
        for (int64_t row = worker * span; row < limit && first < last; row += size) {
          unit(row, std::min(row + size, limit), first, last, results + worker * logits.channels * filter_size());
        }
      }
    });
  }
};

}  // namespace drconv
