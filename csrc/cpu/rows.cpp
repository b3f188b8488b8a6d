#include "rows.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "level.h"
#include "pack_bf16.h"

namespace sslops {
namespace {

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Row n of z as float32 into out [D], divided by its norm; returns the norm. A row that is not
// finite becomes NaN throughout: every logit that sees it is NaN, as in plain PyTorch.
template <class T>
float unit_row(const T* z, int64_t stride, int64_t D, bool normalize, float* out, double* square) {
  if (stride == 1) {
    for (int64_t d = 0; d < D; ++d) out[d] = static_cast<float>(z[d]);
  } else {
    for (int64_t d = 0; d < D; ++d) out[d] = static_cast<float>(z[d * stride]);
  }
  const double sum = dot(out, out, D);
  *square = sum;
  if (!std::isfinite(sum)) {
    *square = std::numeric_limits<double>::infinity();
    std::fill(out, out + D, std::numeric_limits<float>::quiet_NaN());
    return std::numeric_limits<float>::quiet_NaN();
  }
  if (!normalize) return 1.0f;
  const double norm = std::sqrt(sum);
  const float inverse = static_cast<float>(1.0 / std::max(norm, kNormEps));
  for (int64_t d = 0; d < D; ++d) out[d] *= inverse;
  return static_cast<float>(norm);
}

// One panel: kPanel rows of x [kPanel, ld] as columns [D, kPanel], in blocks of 4 x 4.
void transpose_panel(const float* x, int64_t ld, int64_t D, float* panel) {
  typedef float F4 __attribute__((vector_size(16)));
  typedef int32_t I4 __attribute__((vector_size(16)));
  const auto load = [](const float* p) {
    F4 v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  };
  for (int64_t r = 0; r < kPanel; r += 4) {
    const float* row = x + r * ld;
    for (int64_t d = 0; d < D; d += 4) {  // rows are padded, panels are not
      const F4 a = load(row + d), b = load(row + ld + d);
      const F4 c = load(row + 2 * ld + d), e = load(row + 3 * ld + d);
      const F4 ab_low = __builtin_shuffle(a, b, I4{0, 4, 1, 5});
      const F4 ab_high = __builtin_shuffle(a, b, I4{2, 6, 3, 7});
      const F4 ce_low = __builtin_shuffle(c, e, I4{0, 4, 1, 5});
      const F4 ce_high = __builtin_shuffle(c, e, I4{2, 6, 3, 7});
      const F4 columns[4] = {__builtin_shuffle(ab_low, ce_low, I4{0, 1, 4, 5}),
                             __builtin_shuffle(ab_low, ce_low, I4{2, 3, 6, 7}),
                             __builtin_shuffle(ab_high, ce_high, I4{0, 1, 4, 5}),
                             __builtin_shuffle(ab_high, ce_high, I4{2, 3, 6, 7})};
      for (int64_t n = 0; n < std::min<int64_t>(4, D - d); ++n)
        std::memcpy(panel + (d + n) * kPanel + r, &columns[n], sizeof(F4));
    }
  }
}

}  // namespace

double dot(const float* a, const float* b, int64_t n) {
  double lanes[8] = {};  // independent sums, or each addition waits for the one before
  int64_t k = 0;
  for (; k + 8 <= n; k += 8)
    for (int64_t lane = 0; lane < 8; ++lane)
      lanes[lane] += static_cast<double>(a[k + lane]) * b[k + lane];
  for (; k < n; ++k) lanes[k % 8] += static_cast<double>(a[k]) * b[k];
  for (int64_t width = 4; width > 0; width /= 2)
    for (int64_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  return lanes[0];
}

const float* Rows::row(int64_t n, float* buffer) const {
  if (!bf16) return x.const_data_ptr<float>() + n * ld;
  const at::BFloat16* source = x16.const_data_ptr<at::BFloat16>() + n * ld16;
  for (int64_t d = 0; d < D; ++d) buffer[d] = static_cast<float>(source[d]);
  return buffer;
}

void Rows::point(TileProblem& p) const {
  p.M = M;
  p.D = D;
  p.ld = ld;
  p.ld16 = ld16;
  const auto words = [](const at::Tensor& t) {
    return static_cast<const uint16_t*>(t.const_data_ptr());
  };
  if (bf16) {
    p.x16 = words(x16);
    p.panels16 = words(panels16);
    p.pairs16 = words(pairs16);
  } else {
    p.x = x.const_data_ptr<float>();
    p.panels = panels.const_data_ptr<float>();
  }
}

void unit_row(const at::Tensor& z, int64_t n, bool normalize, float* out) {
  double square;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, z.scalar_type(), "unit_row", [&] {
    unit_row(z.const_data_ptr<scalar_t>() + n * z.stride(0), z.stride(1), z.size(1), normalize, out,
             &square);
  });
}

bool multiplies_bf16(at::ScalarType dtype) {
  return level() >= Level::kBf16 && dtype == at::kBFloat16;
}

Rows make_rows(const at::Tensor& z, bool normalize, bool bf16) {
  Rows r;
  r.M = z.size(0);
  r.D = z.size(1);
  r.rows = round_up(r.M, kPanel);
  r.ld = round_up(r.D, kPanel) + 16;  // an odd number of cache lines
  r.ld16 = round_up(r.D, kPanel) + (round_up(r.D, kPanel) / kPanel % 2 ? 0 : kPanel);
  r.bf16 = bf16;
  const auto f32 = z.options().dtype(at::kFloat), words = z.options().dtype(at::kBFloat16);
  if (r.bf16) {
    r.x16 = at::empty({r.rows, r.ld16}, words);
    r.panels16 = at::empty({r.rows / 16, r.ld16 / 2, 16, 2}, words);
    r.pairs16 = at::empty({r.rows / 2, r.ld16, 2}, words);
  } else {
    r.x = at::empty({r.rows, r.ld}, f32);
    r.panels = at::empty({r.rows / kPanel, r.D, kPanel}, f32);
  }
  r.norm.resize(r.M);
  std::vector<double> square(r.rows / kPanel, 0.0);  // largest of each panel
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, z.scalar_type(), "nt_xent", [&] {
    const scalar_t* data = z.const_data_ptr<scalar_t>();
    const int64_t step = z.stride(0), stride = z.stride(1);
    const int64_t grain = std::max<int64_t>(1, 32768 / (kPanel * r.D));
    at::parallel_for(0, r.rows / kPanel, grain, [&](int64_t begin, int64_t end) {
      std::vector<float> buffer(r.bf16 ? kPanel * r.ld : 0);
      for (int64_t panel = begin; panel < end; ++panel) {
        float* rows =
            r.bf16 ? buffer.data() : r.x.mutable_data_ptr<float>() + panel * kPanel * r.ld;
        std::fill(rows, rows + kPanel * r.ld, 0.0f);
        for (int64_t n = 0; n < kPanel && panel * kPanel + n < r.M; ++n) {
          const int64_t m = panel * kPanel + n;
          double each;
          r.norm[m] = unit_row(data + m * step, stride, r.D, normalize, rows + n * r.ld, &each);
          square[panel] = std::max(square[panel], each);
        }
        if (r.bf16) {
          pack_panel_bf16(rows, r.ld, r.ld16, panel,
                          static_cast<uint16_t*>(r.x16.mutable_data_ptr()),
                          static_cast<uint16_t*>(r.panels16.mutable_data_ptr()),
                          static_cast<uint16_t*>(r.pairs16.mutable_data_ptr()));
        } else {
          transpose_panel(rows, r.ld, r.D,
                          r.panels.mutable_data_ptr<float>() + panel * kPanel * r.D);
        }
      }
    });
  });
  const double largest = *std::max_element(square.begin(), square.end());
  // rounding to bfloat16 makes a row longer by up to 0.4 %
  r.largest = 1.01 * (normalize && std::isfinite(largest) ? 1.0 : largest);
  return r;
}

}  // namespace sslops
