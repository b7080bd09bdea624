// Forward: pixels grouped by region, one product per region, straight from and to their places.
#pragma once

#include "cpu_common.h"
#include "cpu_dot.h"

namespace drconv {

// Filters as the product reads them: [region][panel][in][width], a panel being `width` output channels.
template <typename T>
struct Panels {
  int64_t regions, outputs, inputs;
  int vectors;

  Panels(int64_t regions, int64_t outputs, int64_t inputs) : regions(regions), outputs(outputs), inputs(inputs) {
    const int64_t needed = ceil_div(outputs, kLanes<T>);
    vectors = 1;
    for (int v = 2; v <= kVectors<T>; ++v) {
      if (round_up(needed, v) <= round_up(needed, vectors)) {
        vectors = v;
      }
    }
  }

  int64_t width() const {
    return vectors * kLanes<T>;
  }
  int64_t panels() const {
    return ceil_div(outputs, width());
  }
  int64_t panel_size() const {
    return inputs * width();
  }
  int64_t size() const {
    return regions * panels() * panel_size();
  }

  // `filter` is one region's (O, C), or its (C, O) when `transposed`.
  void pack(const T* filter, bool transposed, int64_t panel, T* dst) const {
    const int64_t first = panel * width(), count = std::min(width(), outputs - first);
    if (count < width()) {
      std::fill(dst, dst + panel_size(), T(0));
    }
    if (!transposed) {
      transpose<T>(filter + first * inputs, inputs, dst, width(), count, inputs);
      return;
    }
    for (int64_t c = 0; c < inputs; ++c) {
      std::copy_n(filter + c * outputs + first, count, dst + c * width());
    }
  }
};

template <typename T>
struct Forward {
  Picture<const T> x, logits;
  Picture<T> y;
  Panels<T> panels;
  const T* packed;   // of all regions or experts, or null where there are others:
  const T* stored;   // (M, O, C), read as they are; or null
  const T* filters;  // (B, M, O, C), every picture's own, packed on the way; or null
  bool transposed;
  const T* mixing;      // (B, M, experts) or null: a region's filter is a sum of packed experts
  const T* scale;       // (B, M) or null
  const T *gain, *bias;  // (O) or null
  bool clamps;  // to [0, limit]
  T limit;

  // One region's rows times one panel; `out` is row 0's first channel of the panel.
  void product(const T* in, const T* weight, T* out, int64_t out_width, const Regions<T>& regions, int64_t region,
               int64_t channel) const {
    with_constant<kVectors<T>>(panels.vectors, [&](auto vectors) {
      for (int64_t i = regions.start[region]; i < regions.start[region + 1]; i += kRows<T>) {
        with_constant<kRows<T>>(std::min<int64_t>(kRows<T>, regions.start[region + 1] - i), [&](auto rows) {
          tile<rows.value, vectors.value>(in, weight, out, out_width, regions.order + i, regions.scale + i, channel);
        });
      }
    });
  }

  template <int R, int V>
  void tile(const T* in, const T* weight, T* out, int64_t out_width, const int32_t* order, const T* factor,
            int64_t channel) const {
    const int64_t in_row = x.channels_last ? x.row : x.channels, in_step = x.channels_last ? x.step : 1;
    ScatteredRows<T, R> rows;
    c10::ForcedUnroll<R>{}([&](auto r) DRCONV_INLINE { rows.rows[r] = in + order[r] * in_row; });
    // The rows of the next tile lie anywhere, where no hardware looks ahead.
    c10::ForcedUnroll<R>{}([&](auto r) DRCONV_INLINE {
      const T* next = in + order[R + r] * in_row;
      __builtin_prefetch(next);
      __builtin_prefetch(next + 64 / sizeof(T));
    });
    Vec<T> sums[R][V];
    multiply<T, R, V>(rows, in_step, weight, V * kLanes<T>, x.channels, sums);
    const int64_t left = panels.outputs - channel;
    c10::ForcedUnroll<R * V>{}([&](auto i) DRCONV_INLINE {
      constexpr int r = i / V, v = i % V;
      const int64_t count = std::min(kLanes<T>, left - v * kLanes<T>);
      if (count > 0) {
        const int64_t place = channel + v * kLanes<T>;
        Vec<T> value = sums[r][v] * Vec<T>(factor[r]);
        if (gain) {
          value = value * Vec<T>::loadu(gain + place, count);
        }
        if (bias) {
          value = value + Vec<T>::loadu(bias + place, count);
        }
        if (clamps) {
          value = at::vec::clamp(value, Vec<T>(T(0)), Vec<T>(limit));
        }
        value.store(out + order[r] * out_width + v * kLanes<T>, count);
      }
    });
  }

  // One region's rows times its stored filters of the output channels [first, first + count).
  void stored_product(const T* in, int64_t in_row, T* out, int64_t out_width, const Regions<T>& regions, int64_t region,
                      int64_t first, int64_t count) const {
    const int64_t begin = regions.start[region];
    in_tiles<kDotFilters>(count, [&](int64_t o, auto outputs) {
      const T* filter = stored + (region * panels.outputs + first + o) * x.channels;
      in_tiles<kDotRows>(regions.start[region + 1] - begin, [&](int64_t i, auto tile_rows) {
        constexpr int R = tile_rows.value, N = outputs.value;
        const int32_t* order = regions.order + begin + i;
        ScatteredRows<T, R> rows;
        c10::ForcedUnroll<R>{}([&](auto r) DRCONV_INLINE { rows.rows[r] = in + order[r] * in_row; });
        T sums[R][N];
        dot<T, R, N>(rows, filter, x.channels, sums);
        for (int r = 0; r < R; ++r) {
          for (int n = 0; n < N; ++n) {
            out[order[r] * out_width + o + n] = finish(sums[r][n] * regions.scale[begin + i + r], first + o + n);
          }
        }
      });
    });
  }

  // What follows the product, for one number of an output channel.
  T finish(T value, int64_t channel) const {
    if (gain) {
      value *= gain[channel];
    }
    if (bias) {
      value += bias[channel];
    }
    if (clamps) {
      value = value < 0 ? 0 : value > limit ? limit : value;  // a NaN stays one
    }
    return value;
  }

  // One panel of the filters of the regions that occur in a picture, [region][in][width].
  const T* own_panels(int64_t image, int64_t panel, const Regions<T>& regions) const {
    T* own = scratch<T, 3>(logits.channels * panels.panel_size());
    std::vector<int64_t> present;
    for (int64_t r = 0; r < logits.channels; ++r) {
      if (regions.start[r] < regions.start[r + 1]) {
        present.push_back(r);
        if (filters) {
          panels.pack(filters + (image * logits.channels + r) * panels.outputs * panels.inputs, transposed, panel,
                      own + r * panels.panel_size());
        }
      }
    }
    if (mixing) {
      in_tiles<kRows<T>>(present.size(), [&](int64_t i, auto rows) {
        mix<rows.value>(image, panel, present.data() + i, own);
      });
    }
    return own;
  }

  // A product as well: the factors of R regions times the experts.
  template <int R>
  void mix(int64_t image, int64_t panel, const int64_t* region, T* own) const {
    const int64_t experts = panels.regions, size = panels.panel_size();
    ScatteredRows<T, R> factors;
    for (int r = 0; r < R; ++r) {
      factors.rows[r] = mixing + (image * logits.channels + region[r]) * experts;
    }
    for (int64_t i = 0; i < size; i += kLanes<T>) {
      Vec<T> sums[R][1];
      multiply<T, R, 1>(factors, 1, packed + panel * size + i, panels.panels() * size, experts, sums);
      c10::ForcedUnroll<R>{}([&](auto r) DRCONV_INLINE { sums[r][0].store(own + region[r] * size + i); });
    }
  }

  // Rows [begin, end), panels [panel0, panel1).
  void unit(int64_t begin, int64_t end, int64_t panel0, int64_t panel1) const {
    const Regions<T> regions(logits, scale, begin, end);
    const T* in = x.data + begin * x.row;
    const bool copies = !x.channels_last || (stored && x.step != 1);
    if (copies) {
      T* rows = scratch<T, 1>((end - begin) * x.channels);
      x.load_rows(begin, end, rows);
      in = rows;
    }
    const int64_t first = panel0 * panels.width();
    const int64_t count = std::min(panel1 * panels.width(), panels.outputs) - first;
    const int64_t out_width = y.channels_last ? y.channels : count;
    T* out = y.channels_last ? y.data + begin * y.channels + first : scratch<T, 2>((end - begin) * count);
    for (int64_t r = 0; stored && r < logits.channels; ++r) {
      stored_product(in, copies ? x.channels : x.row, out, out_width, regions, r, first, count);
    }
    for (int64_t panel = panel0; !stored && panel < panel1; ++panel) {
      const T* weights = packed + panel * panels.panel_size();
      int64_t next = panels.panels() * panels.panel_size();
      if (filters || mixing) {
        next = panels.panel_size();
        weights = own_panels(begin / x.pixels, panel, regions);
      }
      const int64_t channel = panel * panels.width();
      for (int64_t r = 0; r < logits.channels; ++r) {
        product(in, weights + r * next, out + channel - first, out_width, regions, r, channel);
      }
    }
    if (!y.channels_last) {
      y.store_rows(out, out_width, begin, end, first, count);
    }
  }

  // Splits the rows over the threads, or the output channels where reading the filters costs more than the rows.
  void run(int64_t batch) const {
    const int64_t rows = batch * x.pixels, threads = at::get_num_threads();
    const bool many_filters = panels.regions * panels.outputs > (filters || mixing ? x.pixels : rows);
    const int64_t panel_groups = many_filters ? std::min(threads, panels.panels()) : 1;
    const int64_t cached_rows = std::max<int64_t>(128, (512 << 10) / sizeof(T) / x.channels);
    const int64_t most_rows = panels.size() * sizeof(T) > (1 << 20) ? 4096 : cached_rows;
    const int64_t span = filters || mixing ? x.pixels : rows;  // a unit must not cross pictures that have their own filters
    const int64_t wanted = span == x.pixels && batch >= threads ? 1 : ceil_div(threads, panel_groups);
    const int64_t row_groups = std::max(wanted, ceil_div(span, most_rows));
    const int64_t unit_rows = ceil_div(span, row_groups), units = ceil_div(span, unit_rows);
    const int64_t spans = rows / span;
    at::parallel_for(0, spans * units * panel_groups, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t group = i % panel_groups, unit_index = i / panel_groups % units;
        const int64_t origin = i / panel_groups / units * span;
        const int64_t begin = origin + unit_index * unit_rows;
        const int64_t end = origin + std::min(span, (unit_index + 1) * unit_rows);
        unit(begin, end, group * panels.panels() / panel_groups, (group + 1) * panels.panels() / panel_groups);
      }
    });
  }
};

}  // namespace drconv
