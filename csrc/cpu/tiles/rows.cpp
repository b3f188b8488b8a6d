#include "tiles/rows.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "isa/isa.h"
#include "tiles/tensors.h"
#include "tiles/threads.h"

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
  return isa() >= Isa::kAvx512Bf16 && dtype == at::kBFloat16;
}

namespace {

Rows room_for_rows(const at::Tensor& z, bool bf16) {
  Rows r;
  r.M = z.size(0);
  r.D = z.size(1);
  r.rows = round_up(r.M, kPanel);
  r.ld = round_up(r.D, kPanel) + 16;  // an odd number of cache lines
  r.ld16 = round_up(r.D, kPanel) + (round_up(r.D, kPanel) / kPanel % 2 ? 0 : kPanel);
  r.bf16 = bf16;
  if (r.bf16) {
    r.x16 = empty({r.rows, r.ld16}, at::kBFloat16);
    r.panels16 = empty({r.rows / 16, r.ld16 / 2, 16, 2}, at::kBFloat16);
    r.pairs16 = empty({r.rows / 2, r.ld16, 2}, at::kBFloat16);
  } else {
    r.x = empty({r.rows, r.ld}, at::kFloat);
    r.panels = empty({r.rows / kPanel, r.D, kPanel}, at::kFloat);
  }
  r.norm.resize(r.M);
  return r;
}

// Rows of one panel, in all layouts; `buffer` for bfloat16 ones. Returns the largest square.
double fill_panel(const at::Tensor& z, bool normalize, int64_t panel, Rows& r,
                  std::vector<float>& buffer) {
  if (r.bf16) buffer.resize(kPanel * r.ld);
  float* rows = r.bf16 ? buffer.data() : r.x.mutable_data_ptr<float>() + panel * kPanel * r.ld;
  std::fill(rows, rows + kPanel * r.ld, 0.0f);
  double largest = 0.0;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, z.scalar_type(), "unit_row", [&] {
    const scalar_t* data = z.const_data_ptr<scalar_t>();
    for (int64_t n = 0; n < kPanel && panel * kPanel + n < r.M; ++n) {
      const int64_t m = panel * kPanel + n;
      double square;
      r.norm[m] =
          unit_row(data + m * z.stride(0), z.stride(1), r.D, normalize, rows + n * r.ld, &square);
      largest = std::max(largest, square);
    }
  });
  if (r.bf16)
    kernels(true).pack(rows, r.ld, r.ld16, panel, static_cast<uint16_t*>(r.x16.mutable_data_ptr()),
                       static_cast<uint16_t*>(r.panels16.mutable_data_ptr()),
                       static_cast<uint16_t*>(r.pairs16.mutable_data_ptr()));
  else
    transpose_panel(rows, r.ld, r.D, r.panels.mutable_data_ptr<float>() + panel * kPanel * r.D);
  return largest;
}

}  // namespace

Rows make_rows(const at::Tensor& z, bool normalize, bool bf16) {
  return std::move(make_rows({{z, normalize}}, bf16)[0]);
}

std::vector<Rows> make_rows(std::initializer_list<RowSource> sources, bool bf16) {
  struct Panel {
    size_t source;
    int64_t number;
  };
  std::vector<Rows> all;
  std::vector<Panel> panels;
  for (const RowSource& each : sources) {
    all.push_back(room_for_rows(each.z, bf16));
    for (int64_t n = 0; n < all.back().rows / kPanel; ++n) panels.push_back({all.size() - 1, n});
  }
  std::vector<double> largest(panels.size());
  const int64_t grain = row_grain(kPanel * all[0].D);
  at::parallel_for(0, panels.size(), grain, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer;
    for (int64_t n = begin; n < end; ++n) {
      const auto& [source, number] = panels[n];
      const RowSource& from = sources.begin()[source];
      largest[n] = fill_panel(from.z, from.normalize, number, all[source], buffer);
    }
  });
  std::vector<double> square(all.size(), 0.0);
  for (size_t n = 0; n < panels.size(); ++n)
    square[panels[n].source] = std::max(square[panels[n].source], largest[n]);
  for (size_t n = 0; n < all.size(); ++n) {
    // rounding to bfloat16 makes a row longer by up to 0.4 %
    const bool unit = sources.begin()[n].normalize && std::isfinite(square[n]);
    all[n].largest = 1.01 * (unit ? 1.0 : square[n]);
  }
  return all;
}

}  // namespace sslops
