// From the tile kernels' parts to the results, one block for each row:
//
//   lse_i = log sum over the parts;  pos_i = scale <x_i, k_t(i)>
//   loss_i = log(1 + exp(lse_i - pos_i));  p_i = exp(-loss_i), the positive's probability
//   dx_i = sum over the negatives of exp(s_ij - lse) y_j - (1 - p_i) k_t(i)
//   du_i = scale (dx_i - <dx_i, x_i> x_i) / ||u_i||
#pragma once
#include "index.h"
#include "numbers.h"

namespace sslops {

constexpr int kFinishThreads = 128, kFinishWarps = 4;

// Of the products of a logit: more than two orders of adding them differ by. An equal row must tie,
// and the matrix unit adds in another order and truncates.
constexpr float kTie = 1.0f / (1 << 18);

struct Matrix {  // rows of the tile kernels' dtype
  const void* data;
  int64_t ld;
  Kind kind;

  __device__ float at(int64_t row, int64_t d) const { return load(data, row * ld + d, kind); }
};

struct FinishForward {
  int64_t M, D, parts, ld_part;
  const float *part_max, *part_sum, *part_out;  // part_out nullptr: no gradient
  float lift;
  Scale scale;
  Matrix x, positives;
  const int64_t* targets;         // nullptr: i; the loss of one outside [0, others) is NaN
  int64_t others;                 // rows of `positives`
  const float* norms;             // nullptr: not normalised
  float *loss, *lse;              // [M]
  bool* hit;                      // [M] or nullptr
  float *dqueries, *dscale_rows;  // [M, D], [M]
};

// The gradient of a row before it was divided by its norm, times `scale`.
__device__ inline float through_norm(float dx, float x, float inside, float scale, float norm) {
  const float along = norm < kNormEps ? 0.0f : inside * x;
  return scale * (dx - along) / fmaxf(norm, kNormEps);
}

__global__ void __launch_bounds__(kFinishThreads, 8) finish_forward_kernel(FinishForward p) {
  const int64_t i = blockIdx.x, thread = threadIdx.x;
  const int64_t t = named_row(p.targets == nullptr ? i : p.targets[i], p.others);
  float top = -INFINITY, sum = 0.0f;
  for (int64_t part = 0; part < p.parts; ++part) top = fmaxf(top, p.part_max[part * p.M + i]);
  const float from = top == -INFINITY ? 0.0f : top;
  for (int64_t part = 0; part < p.parts; ++part) {
    const int64_t at = part * p.M + i;
    sum += p.part_sum[at] * exp2f(p.part_max[at] - from);
  }
  float dot = 0.0f, size = 0.0f;
  for (int64_t d = thread; d < p.D; d += kFinishThreads) {
    const float product = t < 0 ? NAN : p.x.at(i, d) * p.positives.at(t, d);
    dot += product;
    size += fabsf(product);
  }
  dot = block_sum<kFinishWarps>(dot);
  if (p.hit != nullptr) size = block_sum<kFinishWarps>(size);

  const float scale = p.scale.value(), positive = dot * scale;
  const float negative = (from + (log2f(sum) - p.lift)) * kLn2;  // sum 0: -inf
  const float z = negative - positive;
  const float loss = (z > 0.0f ? z : 0.0f) + log1pf(expf(-fabsf(z)));
  const float lse = positive + loss;
  if (thread == 0) {
    p.loss[i] = loss;
    p.lse[i] = lse;
    if (p.hit != nullptr) p.hit[i] = (dot - kTie * size) * (scale * kLog2e) > top && loss == loss;
  }
  if (p.part_out == nullptr) return;

  const float positive_weight = expm1f(-loss), lse2 = lse * kLog2e + p.lift;
  float* const dx = p.dqueries + i * p.D;
  float inside = 0.0f;
  for (int64_t d = thread; d < p.D; d += kFinishThreads) {
    float total = t < 0 ? NAN : positive_weight * p.positives.at(t, d);
    for (int64_t part = 0; part < p.parts; ++part) {
      const int64_t at = part * p.M + i;
      const float weight = exp2f(p.part_max[at] - lse2);
      total += weight * p.part_out[at * p.ld_part + d];
    }
    dx[d] = total;
    inside += total * p.x.at(i, d);
  }
  inside = block_sum<kFinishWarps>(inside);
  if (thread == 0) p.dscale_rows[i] = inside;
  const float norm = p.norms == nullptr ? 1.0f : p.norms[i];
  for (int64_t d = thread; d < p.D; d += kFinishThreads)
    dx[d] =
        p.norms == nullptr ? scale * dx[d] : through_norm(dx[d], p.x.at(i, d), inside, scale, norm);
}

// Which rows of `others` are a row's positives, each of weight w (p - 1), w and p of the query.
enum class Positives { kNone, kTarget, kAnyQuery };

struct FinishGradient {
  int64_t rows, D, parts, ld_part;
  float* part_out;  // [parts, rows, ld_part]; at least one part, also the scratch of the sum
  const float* grad_scale;
  Scale scale;
  Matrix x, others;
  Positives positives;     // kTarget: row i to others[targets[i]]; kAnyQuery: row j to every i of
                           // targets[i] = j
  const int64_t* targets;  // of the queries; nullptr: i
  int64_t other_rows;      // of `others`
  int64_t M;               // queries
  const float *weight, *loss;          // [M]
  const float *key_weight, *key_loss;  // [M] or nullptr: the same pair, seen from the key
  const float* norms;
  void* out;  // [rows, D]
  Kind out_kind;
  float* dscale_rows;  // [rows] or nullptr

  __device__ float positive_weight(int64_t query) const {
    float w = weight[query] * expm1f(-loss[query]);
    if (key_weight != nullptr) w += key_weight[query] * expm1f(-key_loss[query]);
    return w;
  }
};

__global__ void __launch_bounds__(kFinishThreads, 8) finish_gradient_kernel(FinishGradient p) {
  const int64_t i = blockIdx.x, thread = threadIdx.x;
  float* const dx = p.part_out + i * p.ld_part;
  const float whole = p.grad_scale == nullptr ? 0.0f : 1.0f / *p.grad_scale;
  const bool direct = p.positives == Positives::kTarget ||
                      (p.positives == Positives::kAnyQuery && p.targets == nullptr);
  const bool by_target = p.targets != nullptr && p.positives == Positives::kTarget;
  const int64_t other = named_row(by_target ? p.targets[i] : i, p.other_rows);
  const float own_weight = direct && i < p.M ? p.positive_weight(i) : 0.0f;
  for (int64_t d = thread; d < p.D; d += kFinishThreads) {
    float total = 0.0f;
    for (int64_t part = 0; part < p.parts; ++part)
      total += p.part_out[(part * p.rows + i) * p.ld_part + d];
    total *= whole;
    if (direct && i < p.M) total += other < 0 ? NAN : own_weight * p.others.at(other, d);
    dx[d] = total;
  }
  if (p.positives == Positives::kAnyQuery && p.targets != nullptr) {
    bool* const match = reinterpret_cast<bool*>(shared_memory()) + 64;  // behind block_sum's words
    for (int64_t first = 0; first < p.M; first += kFinishThreads) {
      const bool is_query = first + thread < p.M && p.targets[first + thread] == i;
      match[thread] = is_query;
      if (barrier_any(is_query)) {
        for (int n = 0; n < kFinishThreads; ++n) {
          if (!match[n]) continue;
          const float w = p.positive_weight(first + n);
          for (int64_t d = thread; d < p.D; d += kFinishThreads)
            dx[d] += w * p.others.at(first + n, d);
        }
        barrier();  // before `match` is overwritten
      }
    }
  }
  float inside = 0.0f;
  for (int64_t d = thread; d < p.D; d += kFinishThreads) inside += dx[d] * p.x.at(i, d);
  inside = block_sum<kFinishWarps>(inside);
  if (thread == 0 && p.dscale_rows != nullptr) p.dscale_rows[i] = inside;
  if (p.out == nullptr) return;
  const float scale = p.scale.value(), norm = p.norms == nullptr ? 1.0f : p.norms[i];
  for (int64_t d = thread; d < p.D; d += kFinishThreads) {
    const float value =
        p.norms == nullptr ? scale * dx[d] : through_norm(dx[d], p.x.at(i, d), inside, scale, norm);
    store(p.out, i * p.D + d, p.out_kind, value);
  }
}

// Power of two that brings the largest weight to [2^13, 2^14]: what float16 tiles hold of two terms
// neither overflows nor vanishes, whatever a loss scaler makes of the upstream gradient.
__global__ void __launch_bounds__(kFinishThreads, 8)
    grad_scale_kernel(const float* a, int64_t na, const float* b, int64_t nb, float* grad_scale) {
  float* const tops = reinterpret_cast<float*>(shared_memory());
  float top = 0.0f;
  for (int64_t n = threadIdx.x; n < na; n += kFinishThreads) top = fmaxf(top, fabsf(a[n]));
  for (int64_t n = threadIdx.x; n < nb; n += kFinishThreads) top = fmaxf(top, fabsf(b[n]));
  tops[threadIdx.x] = top;
  barrier();
  if (threadIdx.x != 0) return;
  for (int n = 1; n < kFinishThreads; ++n) top = fmaxf(top, tops[n]);
  int exponent = 0;
  frexpf(top, &exponent);  // top = f 2^exponent, f in [0.5, 1)
  const int lift = 14 - exponent;
  *grad_scale = top > 0.0f && top < INFINITY ? ldexpf(1.0f, lift < 120 ? lift : 120) : 1.0f;
}

__global__ void __launch_bounds__(kFinishThreads, 8)
    sum_kernel(const float* values, int64_t n, float* out) {
  float sum = 0.0f;
  for (int64_t i = threadIdx.x; i < n; i += kFinishThreads) sum += values[i];
  sum = block_sum<kFinishWarps>(sum);
  if (threadIdx.x == 0) *out = sum;
}

}  // namespace sslops
