// Views of a batch of images in one pass, from stored values to normalised float32: crop, resize and mirror as two
// banded products, colour jitter in each sample's own order, grey, blur, solarise, normalise. The parameters are drawn
// by the caller (pipeline.py), and the operations are those of crop.py and colour.py.
//
// One sample is computed by one thread in one fixed order, sums run over sixteen fixed lanes, and products are not
// contracted (-ffp-contract=off), so a view's bits depend neither on the batch, nor on the number of threads, nor on
// which of the instruction sets below is used.
//
// Plain C interface, loaded by kernel.py with ctypes. This file includes itself once for every instruction set.
#ifndef LANES

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#ifndef OSTEON_SOURCE
#define OSTEON_SOURCE 0
#endif

namespace {

// One call; kernel.py has the same list. B samples, pointers to B entries each; null where a part is left out.
struct Job {
  const void* images;     // (B, C, H, W)
  float* out;             // (B, C, h, w)
  const double* edge;     // (B, 4) x0, y0, x1, y1 in pixels
  const uint8_t* flip;    // mirror left-right
  const uint8_t* jitter;  // whether colours are jittered
  const float* factor;    // (B, 4) brightness, contrast, saturation, hue
  const int64_t* order;   // (B, 4) what is done first, second, ...
  const uint8_t* grey;
  const float* sigma;  // deviation of the blur in pixels; 0: none
  const uint8_t* solarise;
  const float* mean;  // (C)
  const float* std;   // (C)
  double scale;       // stored values are divided by it
  int64_t batch, channels, height, width, out_height, out_width;
  int32_t dtype;    // 0 uint8, 1 uint16, 2 float32
  int32_t cubic;    // 1: bicubic; 0: bilinear
  int32_t clip;     // cut what bicubic overshoots to [0, 1]
  int32_t reach;    // largest radius of the blur
  int32_t threads;
  int32_t isa;  // 0 plain, 1 AVX2, 2 AVX512
};

enum { BRIGHTNESS, CONTRAST, SATURATION, HUE, GREY };

// A step of the colour programme: brightness, contrast and saturation are clamp(f x + (1 - f) grey + c).
struct Op {
  int kind;
  float f, c;
};

// Output o is the sum over k < taps of weight[o * taps + k] * input[first[o] + k].
struct Band {
  int taps = 0;
  std::vector<int> first;
  std::vector<float> weight;
};

struct Buffer {
  std::vector<float> data;
  float* at(size_t count) {
    if (data.size() < count + 16) data.resize(count + 16);
    const uintptr_t p = reinterpret_cast<uintptr_t>(data.data());
    return reinterpret_cast<float*>((p + 63) & ~uintptr_t(63));
  }
};

struct Scratch {
  Band across, down;
  Buffer source, columns, resized, middle, planes, row;
  std::vector<const float*> rows;
};

// Weights that resample [start, stop) to `size` pixels, antialiased; rows sum to `gain`. See crop.resample_matrix.
void make_band(Band& band, double start, double stop, int size, bool flip, bool cubic, double gain) {
  const double slack = 1e-3, step = (stop - start) / size, wide = std::max(step, 1.0), reach = (cubic ? 2 : 1) * wide;
  const int begin = int(std::floor(start + slack)), end = int(std::ceil(stop - slack));
  const int taps = std::min(end - begin, int(std::ceil(2 * reach - 1e-6)));
  const double shrink = 1 / wide;
  band.taps = taps;
  band.first.resize(size);
  band.weight.resize(size_t(size) * taps);
  for (int o = 0; o < size; ++o) {
    const double centre = start + ((flip ? size - 1 - o : o) + 0.5) * step;
    const int first = std::max(begin, std::min(int(std::floor(centre - reach - 0.5 + 1e-6)) + 1, end - taps));
    float* weight = band.weight.data() + size_t(o) * taps;
    double total = 0;
    for (int k = 0; k < taps; ++k) {
      const double d = std::fabs(first + k + 0.5 - centre) * shrink;
      double w = d < 1 ? 1 - d : 0;
      if (cubic) w = d < 1 ? (1.5 * d - 2.5) * d * d + 1 : d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0;
      weight[k] = float(w);
      total += w;
    }
    const float norm = float(gain / total);
    for (int k = 0; k < taps; ++k) weight[k] *= norm;
    band.first[o] = first;
  }
}

// One half of a Gaussian's taps, the middle first, all of them summing to 1. Taps beyond five deviations (4e-6 of the
// middle one) are left out.
int make_gaussian(std::vector<float>& taps, float sigma, int reach, int side) {
  const int radius = std::min({reach, side - 1, int(std::ceil(5 * sigma))});
  taps.resize(radius + 1);
  double total = 0;
  for (int j = 0; j <= radius; ++j) {
    const double z = j / double(sigma);
    taps[j] = float(std::exp(-0.5 * z * z));
    total += (j ? 2 : 1) * double(taps[j]);
  }
  for (float& tap : taps) tap = float(tap / total);
  return radius;
}

#define LANES 4
#define SET plain
#define TARGET
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#include "_kernel.cpp"
#if defined(__x86_64__)
#define LANES 8
#define SET avx2
#define TARGET __attribute__((target("avx2")))
#define MAX(a, b) vf(_mm256_max_ps(__m256(a), __m256(b)))
#define MIN(a, b) vf(_mm256_min_ps(__m256(a), __m256(b)))
#include "_kernel.cpp"
#define LANES 16
#define SET avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define MAX(a, b) vf(_mm512_max_ps(__m512(a), __m512(b)))
#define MIN(a, b) vf(_mm512_min_ps(__m512(a), __m512(b)))
#include "_kernel.cpp"
#endif

using Work = void (*)(const Job&, int64_t, Scratch&);

Work choose(int isa) {
#if defined(__x86_64__)
  if (isa == 2) return avx512::sample;
  if (isa == 1) return avx2::sample;
#endif
  return isa == 0 ? plain::sample : nullptr;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Checksum of the source this was built from.
EXPORT uint32_t osteon_views_source() { return OSTEON_SOURCE; }

// The best instruction set of this machine: 0 plain, 1 AVX2, 2 AVX512.
EXPORT int osteon_views_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return 2;
  if (__builtin_cpu_supports("avx2")) return 1;
#endif
  return 0;
}

// Compute every view. Returns 0; 1 when the instruction set is unknown here; 2 when memory ran out.
EXPORT int osteon_views_run(const Job* given) {
  const Job job = *given;
  const Work work = job.isa <= osteon_views_isa() ? choose(job.isa) : nullptr;
  if (!work) return 1;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  const auto some = [&]() {
    try {
      static thread_local Scratch scratch;  // the caller's is kept for the next call
      for (int64_t i; !failed && (i = next++) < job.batch;) work(job, i, scratch);
    } catch (...) {
      failed = true;
    }
  };
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // Fresh memory for large views is handed out in pages of 2 MiB: a fault on every 4 KiB would cost as much as the view.
  const uintptr_t page = uintptr_t(1) << 21, begin = (reinterpret_cast<uintptr_t>(job.out) + page - 1) & ~(page - 1);
  const uintptr_t bytes = uintptr_t(job.batch * job.channels * job.out_height * job.out_width) * sizeof(float);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(job.out) + bytes) & ~(page - 1);
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  // A thread costs some ten microseconds to start: it should have more to do than that.
  const int64_t values = job.batch * job.channels * (job.out_height * job.out_width + 64);
  const int64_t threads = std::min({int64_t(job.threads), job.batch, values / 65536 + 1});
  std::vector<std::thread> helpers;
  try {
    for (int64_t t = 1; t < threads; ++t) helpers.emplace_back(some);
  } catch (...) {  // no more threads to be had: those there are do the work
  }
  some();
  for (std::thread& helper : helpers) helper.join();
  return failed ? 2 : 0;
}

#else  // the part that is compiled for every instruction set

namespace SET {

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef float v4 __attribute__((vector_size(16)));
typedef int32_t v4i __attribute__((vector_size(16)));

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, v4i{i, j, k, l})
#endif
#define INLINE TARGET static inline __attribute__((always_inline))

INLINE vf load(const float* p) {
  vf v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
INLINE void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }
INLINE v4 load4(const float* p) {
  v4 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
INLINE void store4(float* p, v4 v) { std::memcpy(p, &v, sizeof v); }
INLINE vf all(float x) { return vf{} + x; }
INLINE vf clamp(vf x) { return MIN(MAX(x, all(0)), all(1)); }
INLINE vf shade(vf r, vf g, vf b) { return r * 0.2989f + g * 0.587f + b * 0.114f; }

// Four numbers of four rows become four rows of four columns.
INLINE void transpose(const float* from, int64_t step, float* to, int64_t stride) {
  const v4 a = load4(from), b = load4(from + step), c = load4(from + 2 * step), d = load4(from + 3 * step);
  const v4 ab = SHUFFLE(a, b, 0, 4, 1, 5), cd = SHUFFLE(c, d, 0, 4, 1, 5);
  const v4 AB = SHUFFLE(a, b, 2, 6, 3, 7), CD = SHUFFLE(c, d, 2, 6, 3, 7);
  store4(to, SHUFFLE(ab, cd, 0, 1, 4, 5));
  store4(to + stride, SHUFFLE(ab, cd, 2, 3, 6, 7));
  store4(to + 2 * stride, SHUFFLE(AB, CD, 0, 1, 4, 5));
  store4(to + 3 * stride, SHUFFLE(AB, CD, 2, 3, 6, 7));
}

template <class T>
TARGET static void widen(const T* in, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = float(in[i]);
}

// `count` numbers of row y of a plane, from column x.
TARGET static void fetch(const Job& job, int64_t plane, int64_t y, int64_t x, int64_t count, float* out) {
  const int64_t at = (plane * job.height + y) * job.width + x;
  if (job.dtype == 0) widen(static_cast<const uint8_t*>(job.images) + at, out, count);
  if (job.dtype == 1) widen(static_cast<const uint16_t*>(job.images) + at, out, count);
  if (job.dtype == 2) std::memcpy(out, static_cast<const float*>(job.images) + at, count * sizeof(float));
}

// Resample sixteen rows at once: they lie side by side, (column, 16), before and after.
template <int TAPS>
TARGET static void across(const float* in, const Band& band, int first, int64_t count, float* out) {
  const int taps = TAPS ? TAPS : band.taps;
  for (int64_t o = 0; o < count; ++o) {
    const float* from = in + 16 * int64_t(band.first[o] - first);
    const float* weight = band.weight.data() + o * taps;
    for (int lane = 0; lane < 16; lane += LANES) {
      vf sum = load(from + lane) * weight[0];
      for (int k = 1; k < taps; ++k) sum += load(from + 16 * k + lane) * weight[k];
      store(out + 16 * o + lane, sum);
    }
  }
}

// Resample down the columns: rows of `stride` numbers become `count` such rows.
template <int TAPS>
TARGET static void down(const float* in, const Band& band, int first, int64_t count, int64_t stride, bool clip,
                        float* out) {
  const int taps = TAPS ? TAPS : band.taps;
  for (int64_t o = 0; o < count; ++o, out += stride) {
    const float* from = in + stride * int64_t(band.first[o] - first);
    const float* weight = band.weight.data() + o * taps;
    for (int64_t x = 0; x < stride; x += LANES) {
      vf sum = load(from + x) * weight[0];
      for (int k = 1; k < taps; ++k) sum += load(from + stride * k + x) * weight[k];
      store(out + x, clip ? clamp(sum) : sum);
    }
  }
}

// Cut the box out of one plane, resize and mirror it into `out`, (h, stride).
TARGET static void resize(const Job& job, int64_t plane, Scratch& s, int64_t stride, float* out) {
  const Band &h = s.across, &v = s.down;
  const int64_t wide = job.out_width, tall = job.out_height;
  const auto [left, right] = std::minmax(h.first[0], h.first[wide - 1]);  // the order is reversed by a mirror
  const int top = v.first[0], rows = v.first[tall - 1] + v.taps - top;
  const int64_t span = right + h.taps - left, padded = (span + 3) / 4 * 4;
  float *source = s.source.at(16 * padded), *columns = s.columns.at(16 * padded);
  float *resized = s.resized.at(16 * stride), *middle = s.middle.at((rows + 16) * stride);
  std::fill(resized + 16 * wide, resized + 16 * stride, 0.0f);
  for (int y = 0; y < rows; y += 16) {
    for (int r = 0; r < std::min(16, rows - y); ++r) fetch(job, plane, top + y + r, left, span, source + r * padded);
    for (int64_t x = 0; x < padded; x += 4)
      for (int r = 0; r < 16; r += 4) transpose(source + r * padded + x, padded, columns + 16 * x + r, 16);
    (h.taps == 2   ? across<2>
     : h.taps == 3 ? across<3>
     : h.taps == 4 ? across<4>
                   : across<0>)(columns, h, left, wide, resized);
    for (int64_t x = 0; x < stride; x += 4)
      for (int r = 0; r < 16; r += 4) transpose(resized + 16 * x + r, 16, middle + (y + r) * stride + x, stride);
  }
  (v.taps == 2   ? down<2>
   : v.taps == 3 ? down<3>
   : v.taps == 4 ? down<4>
                 : down<0>)(middle, v, top, tall, stride, job.clip, out);
}

// Turn the hue by `shift` sixths of a turn, in [0, 6): the hexcone's position times chroma, so nothing is divided.
INLINE void turn(vf& r, vf& g, vf& b, float shift) {
  const vf high = MAX(MAX(r, g), b), low = MIN(MIN(r, g), b), c = high - low, zero = all(0);
  vf h = high == r ? g - b : high == g ? (b - r) + c * 2.0f : (r - g) + c * 4.0f;
  h += c * shift;
  h = h < zero ? h + c * 6.0f : h;
  h = h >= c * 6.0f ? h - c * 6.0f : h;
  const vf x = h - c * 3.0f, y = h - c * 2.0f, z = h - c * 4.0f;
  r = low + MIN(MAX(MAX(x, -x) - c, zero), c);
  g = low + MIN(MAX(c * 2.0f - MAX(y, -y), zero), c);
  b = low + MIN(MAX(c * 2.0f - MAX(z, -z), zero), c);
}

// Run the colour programme over `count` pixels of three planes.
TARGET static void colour(float* r_, float* g_, float* b_, int64_t count, const Op* ops, int steps) {
  for (int64_t i = 0; i < count; i += LANES) {
    vf r = load(r_ + i), g = load(g_ + i), b = load(b_ + i);
    for (int k = 0; k < steps; ++k) {
      const Op op = ops[k];
      vf add = all(op.c);
      switch (op.kind) {
        case HUE:
          turn(r, g, b, op.f);
          break;
        case GREY:
          r = g = b = shade(r, g, b);
          break;
        case SATURATION:
          add = shade(r, g, b) * (1 - op.f);
          [[fallthrough]];
        default:  // brightness, contrast
          r = clamp(r * op.f + add), g = clamp(g * op.f + add), b = clamp(b * op.f + add);
      }
    }
    store(r_ + i, r), store(g_ + i, g), store(b_ + i, b);
  }
}

// The same for any other number of planes: saturation and hue have no meaning there, grey is the mean.
TARGET static void tone(float* planes, int64_t size, int64_t channels, int64_t count, const Op* ops, int steps) {
  for (int k = 0; k < steps; ++k) {
    if (ops[k].kind == GREY) {
      for (int64_t i = 0; i < count; i += LANES) {
        vf sum = load(planes + i);
        for (int64_t c = 1; c < channels; ++c) sum += load(planes + c * size + i);
        for (int64_t c = 0; c < channels; ++c) store(planes + c * size + i, sum * (1.0f / float(channels)));
      }
    } else if (ops[k].kind <= CONTRAST) {
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = c * size; i < c * size + count; i += LANES)
          store(planes + i, clamp(load(planes + i) * ops[k].f + ops[k].c));
    }
  }
}

// Sum of the grey values of `rows` rows; columns from `wide` to `stride` are padding.
TARGET static double grey_sum(const float* planes, int64_t size, int64_t channels, int64_t rows, int64_t wide,
                              int64_t stride) {
  vf sum[16 / LANES] = {};
  double rest = 0;
  for (int64_t y = 0; y < rows; ++y) {
    const float* at = planes + y * stride;
    int64_t x = 0;
    if (channels == 3) {
      for (; x + 16 <= wide; x += 16)
        for (int k = 0; k < 16 / LANES; ++k, at += LANES) sum[k] += shade(load(at), load(at + size), load(at + 2 * size));
      for (; x < wide; ++x, ++at) rest += 0.2989f * at[0] + 0.587f * at[size] + 0.114f * at[2 * size];
    } else {
      for (int64_t c = 0; c < channels; ++c) {
        const float* value = at + c * size;
        for (x = 0; x + 16 <= wide; x += 16)
          for (int k = 0; k < 16 / LANES; ++k, value += LANES) sum[k] += load(value);
        for (; x < wide; ++x, ++value) rest += *value;
      }
    }
  }
  float lanes[16];
  std::memcpy(lanes, sum, sizeof lanes);
  for (const float lane : lanes) rest += lane;
  return channels == 3 ? rest : rest / double(channels);
}

INLINE vf last(vf v, bool solar, float mean, float gain) {
  if (solar) v = v >= all(0.5f) ? all(1) - v : v;
  return (v - mean) * gain;
}

// Solarise if asked, normalise, and write one row of the view.
TARGET static void finish(const float* in, int64_t wide, bool solar, float mean, float std, float* out) {
  const float gain = 1 / std;
  int64_t x = 0;
  for (; x + LANES <= wide; x += LANES) store(out + x, last(load(in + x), solar, mean, gain));
  if (x == wide) return;
  const vf rest = last(load(in + x), solar, mean, gain);
  std::memcpy(out + x, &rest, (wide - x) * sizeof(float));
}

// N vectors of a symmetric filter: middle * taps[0] plus the sums of what lies j before and j after times taps[j].
template <int N>
INLINE void blur_some(const float* middle, const float* const* rows, int64_t x, const float* taps, int radius,
                      float* out) {
  vf sum[N];
  for (int k = 0; k < N; ++k) sum[k] = load(middle + x + k * LANES) * taps[0];
  for (int j = 1; j <= radius; ++j) {
    const float *before = rows ? rows[2 * j] + x : middle + x - j, *after = rows ? rows[2 * j + 1] + x : middle + x + j;
    for (int k = 0; k < N; ++k) sum[k] += (load(before + k * LANES) + load(after + k * LANES)) * taps[j];
  }
  for (int k = 0; k < N; ++k) store(out + x + k * LANES, sum[k]);
}

// Blur one row in place; `padded` holds wide + 2 radius + 16 numbers. The edge pixel is not repeated.
TARGET static void blur_row(float* row, int64_t wide, int64_t stride, const float* taps, int radius, float* padded) {
  std::memcpy(padded + radius, row, wide * sizeof(float));
  for (int j = 1; j <= radius; ++j) {
    padded[radius - j] = row[j];
    padded[radius + wide - 1 + j] = row[wide - 1 - j];
  }
  int64_t x = 0;
  for (; x + 4 * LANES <= stride; x += 4 * LANES) blur_some<4>(padded + radius, nullptr, x, taps, radius, row);
  for (; x < wide; x += LANES) blur_some<1>(padded + radius, nullptr, x, taps, radius, row);
}

// Blur row y of a plane down the columns into `out`.
TARGET static void blur_column(const float* plane, int64_t y, int64_t tall, int64_t stride, const float* taps,
                               int radius, const float** rows, float* out) {
  for (int j = 1; j <= radius; ++j) {
    rows[2 * j] = plane + stride * std::abs(y - j);
    rows[2 * j + 1] = plane + stride * (tall - 1 - std::abs(tall - 1 - y - j));
  }
  const float* middle = plane + stride * y;
  int64_t x = 0;
  for (; x + 4 * LANES <= stride; x += 4 * LANES) blur_some<4>(middle, rows, x, taps, radius, out);
  for (; x < stride; x += LANES) blur_some<1>(middle, rows, x, taps, radius, out);
}

// The colour programme of sample i; returns its length, and in `contrast` the place of the contrast (or the length).
TARGET static int programme(const Job& job, int64_t i, Op* ops, int* contrast) {
  int steps = 0;
  *contrast = -1;
  for (int k = 0; job.jitter && job.jitter[i] && k < 4; ++k) {
    const int kind = int(job.order[4 * i + k]);
    float f = job.factor[4 * i + kind];
    if (kind == HUE) f = 6 * (f - std::floor(f));
    if (kind >= SATURATION && job.channels != 3) continue;
    if (kind == CONTRAST) *contrast = steps;
    ops[steps++] = {kind, f, 0};
  }
  if (job.grey && job.grey[i]) ops[steps++] = {GREY, 0, 0};
  return steps;
}

// Everything for sample i.
TARGET static void sample(const Job& job, int64_t i, Scratch& s) {
  const int64_t C = job.channels, tall = job.out_height, wide = job.out_width;
  const int64_t stride = (wide + 15) / 16 * 16, size = tall * stride, block = std::max<int64_t>(1, 2048 / stride);
  const double* edge = job.edge + 4 * i;
  make_band(s.across, edge[0], edge[2], int(wide), job.flip[i], job.cubic, 1);
  make_band(s.down, edge[1], edge[3], int(tall), false, job.cubic, 1 / job.scale);
  float* planes = s.planes.at(C * size);
  for (int64_t c = 0; c < C; ++c) resize(job, i * C + c, s, stride, planes + c * size);

  Op ops[5];
  int contrast = -1;
  const int steps = programme(job, i, ops, &contrast);
  const auto run = [&](int64_t y, int64_t rows, const Op* from, int count) {
    float* at = planes + y * stride;
    if (count && C == 3) colour(at, at + size, at + 2 * size, rows * stride, from, count);
    if (count && C != 3) tone(at, size, C, rows * stride, from, count);
  };
  if (contrast >= 0) {  // it needs the mean grey of what comes before it
    double total = 0;
    for (int64_t y = 0; y < tall; y += block) {
      const int64_t rows = std::min(block, tall - y);
      run(y, rows, ops, contrast);
      total += grey_sum(planes + y * stride, size, C, rows, wide, stride);
    }
    ops[contrast].c = (1 - ops[contrast].f) * float(total / double(tall * wide));
  } else {
    contrast = 0;
  }

  const float sigma = job.sigma ? job.sigma[i] : 0;
  const bool solar = job.solarise && job.solarise[i];
  std::vector<float> taps_h, taps_v;
  const int radius_h = sigma > 0 ? make_gaussian(taps_h, sigma, job.reach, int(wide)) : 0;
  const int radius_v = sigma > 0 ? make_gaussian(taps_v, sigma, job.reach, int(tall)) : 0;
  float *row = s.row.at(stride + 2 * radius_h + 32), *out = job.out + i * C * tall * wide;
  for (int64_t y = 0; y < tall; y += block) {
    const int64_t rows = std::min(block, tall - y);
    run(y, rows, ops + contrast, steps - contrast);
    for (int64_t c = 0; c < C; ++c)
      for (int64_t r = y; r < y + rows; ++r) {
        float* at = planes + c * size + r * stride;
        if (sigma > 0)
          blur_row(at, wide, stride, taps_h.data(), radius_h, row);
        else
          finish(at, wide, solar, job.mean[c], job.std[c], out + (c * tall + r) * wide);
      }
  }
  if (!(sigma > 0)) return;
  s.rows.resize(2 * radius_v + 2);
  for (int64_t c = 0; c < C; ++c)
    for (int64_t y = 0; y < tall; ++y) {
      blur_column(planes + c * size, y, tall, stride, taps_v.data(), radius_v, s.rows.data(), row);
      finish(row, wide, solar, job.mean[c], job.std[c], out + (c * tall + y) * wide);
    }
}

}  // namespace SET

#undef SHUFFLE
#undef INLINE
#undef LANES
#undef SET
#undef TARGET
#undef MAX
#undef MIN
#endif
