import time
print("slow to start", flush=True)
time.sleep(60)
